// y[r, c] = sum over kept slots j of  x[r, source(g, j)] * values[j, c],      g = c / L
#pragma once

#include "kernel_pack.h"

namespace jax_nm {
namespace {

constexpr int kSpmmCols = 6;

// kVectors vectors of rows times kCols columns of one group in registers. A slot costs kVectors
// contiguous loads of x at its source and kCols broadcasts.
template <typename T, int kVectors, int kCols>
void SpmmRegisterBlock(const T* x, const int32_t* sources, int64_t slots, const T* values,
                       int64_t values_stride, T* y) {
  constexpr int64_t kWidth = kVectors * kLanes<T>;
  Vector<T> sum[kCols][kVectors] = {};
  // What the block adds to when it ends is fetched while it runs: 5 % faster.
  JAX_NM_UNROLL
  for (int c = 0; c < kCols; ++c) {
    JAX_NM_UNROLL
    for (int v = 0; v < kVectors; ++v) Prefetch(y + c * kWidth + v * kLanes<T>);
  }
  for (int64_t j = 0; j < slots; ++j) {
    const T* from = x + sources[j] * kWidth;
    Vector<T> gathered[kVectors];
    JAX_NM_UNROLL
    for (int v = 0; v < kVectors; ++v) gathered[v] = Load(from + v * kLanes<T>);
    JAX_NM_UNROLL
    for (int c = 0; c < kCols; ++c) {
      JAX_NM_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[c][v] += gathered[v] * values[c];
    }
    values += values_stride;
  }
  JAX_NM_UNROLL
  for (int c = 0; c < kCols; ++c) {
    JAX_NM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      T* target = y + c * kWidth + v * kLanes<T>;
      StoreRaw(target, Load(target) + sum[c][v]);
    }
  }
}

template <typename T, int kVectors, int kCols>
void SpmmColumns(int64_t cols, const T* x, const int32_t* sources, int64_t slots, const T* values,
                 int64_t values_stride, T* y) {
  if (cols == kCols) {
    SpmmRegisterBlock<T, kVectors, kCols>(x, sources, slots, values, values_stride, y);
  } else if constexpr (kCols > 1) {
    SpmmColumns<T, kVectors, kCols - 1>(cols, x, sources, slots, values, values_stride, y);
  }
}

// All columns of one group within the tile, for one panel. y is [cols, width], values [slots,
// cols].
template <typename T, int kVectors = kPanelVectors>
void SpmmGroup(int64_t width, int64_t cols, const T* x, const int32_t* sources, int64_t slots,
               const T* values, T* y) {
  if (width == kVectors * kLanes<T>) {
    ForEachPiece<kSpmmCols>(cols, [&](int64_t begin, int64_t piece) {
      SpmmColumns<T, kVectors, kSpmmCols>(piece, x, sources, slots, values + begin, cols,
                                          y + begin * width);
    });
  } else if constexpr (kVectors > 1) {
    SpmmGroup<T, kVectors - 1>(width, cols, x, sources, slots, values, y);
  }
}

// Packs values[slots, tile] group after group, each as [slots, its columns]: a slot of a group is
// then one or a few neighbouring cache lines. Reads run along whole rows of the tile.
template <typename T, typename S>
void PackValuesAs(const S* values, int64_t cols, Range slots, Range tile, int64_t vector_length,
                  T* packed) {
  for (int64_t j = 0; j < slots.size; ++j) {
    const S* row = values + (slots.begin + j) * cols;
    ForEachGroup(tile, vector_length, [&](int64_t, Range group_cols) {
      T* target = packed + (group_cols.begin - tile.begin) * slots.size + j * group_cols.size;
      CopyRun(row + group_cols.begin, group_cols.size, group_cols.size, target);
    });
  }
}

template <typename T>
void PackValues(const Matrix& values, Range slots, Range tile, int64_t vector_length, T* packed) {
  const int64_t cols = values.stride;
  if constexpr (sizeof(T) == 8) {
    PackValuesAs(static_cast<const double*>(values.data), cols, slots, tile, vector_length, packed);
  } else if (values.dtype == DType::kFloat32) {
    PackValuesAs(static_cast<const float*>(values.data), cols, slots, tile, vector_length, packed);
  } else if (values.dtype == DType::kBFloat16) {
    PackValuesAs(static_cast<const BFloat16*>(values.data), cols, slots, tile, vector_length,
                 packed);
  } else {
    PackValuesAs(static_cast<const Float16*>(values.data), cols, slots, tile, vector_length,
                 packed);
  }
}

template <typename T>
void SpmmTask(const Job& job, int64_t task, void* scratch) {
  const Problem& p = job.problem;
  const Config& config = job.config;
  const Range cols = BlockRange(task % config.col_blocks, config.block_cols, p.cols);
  const int64_t row_task = task / config.col_blocks;
  const Range rows = BlockRange(row_task % config.row_blocks, config.block_rows, p.rows);
  const int64_t batch = row_task / config.row_blocks;

  char* base = static_cast<char*>(scratch);
  T* x_panels = reinterpret_cast<T*>(base);
  T* y_panels = reinterpret_cast<T*>(base + config.y_offset);
  T* packed_values = reinterpret_cast<T*>(base + config.values_offset);
  int32_t* sources = reinterpret_cast<int32_t*>(base + config.sources_offset);

  const Matrix x = Operand(job.first, p.dtype, p.x_layout, batch, p.rows, p.depth);
  const Matrix values = Operand(job.second, p.dtype, Layout::kRowMajor, batch, p.kept, p.cols);
  const uint8_t* indices = job.indices + batch * p.groups * p.kept;
  const MutableMatrix y = Result(job.result, p.result_dtype, p.y_layout, batch, p.rows, p.cols);

  Zero(y_panels, RoundUp(rows.size, kLanes<T>) * cols.size);
  for (int64_t block = 0; block < config.window_blocks; ++block) {
    const Range depth = BlockRange(block, config.block_windows * p.m, p.depth);
    const Range slots = BlockRange(block, config.block_windows * p.n, config.active_kept);
    ForEachPanel<T>(rows, [&](Range panel, int64_t width, int64_t done) {
      Pack(x, panel, depth, width, x_panels + done * depth.size);
    });
    for (int64_t begin = 0; begin < cols.size; begin += config.tile_cols) {
      const Range tile{cols.begin + begin, Min(config.tile_cols, cols.size - begin)};
      PackValues(values, slots, tile, p.vector_length, packed_values);
      ForEachGroup(tile, p.vector_length, [&](int64_t group, Range group_cols) {
        DecodeSources(p, indices + group * p.kept + slots.begin, slots.begin, slots.size, sources);
        const T* group_values = packed_values + (group_cols.begin - tile.begin) * slots.size;
        ForEachPanel<T>(rows, [&](Range, int64_t width, int64_t done) {
          SpmmGroup(width, group_cols.size, x_panels + done * depth.size, sources, slots.size,
                    group_values,
                    y_panels + done * cols.size + (group_cols.begin - cols.begin) * width);
        });
      });
    }
  }
  ForEachPanel<T>(rows, [&](Range panel, int64_t width, int64_t done) {
    Unpack(y_panels + done * cols.size, width, panel, cols, y);
  });
}

}  // namespace
}  // namespace jax_nm
