// dx[r, s] = sum over the groups g and slots j with source(g, j) = s of
//            sum over the columns c of g of  dy[r, c] * values[j, c]
#pragma once

#include "kernel_pack.h"

namespace jax_nm {
namespace {

constexpr int kSpmmTSlots = 6;

// kVectors vectors of rows times kSlots slots of one group in registers: reduces the columns of the
// group, then adds each slot's vector to dx at its source. One task owns these rows of dx, so the
// scatter needs no atomics, and slots that share a source (malformed indices) stay ordered.
template <typename T, int kVectors, int kSlots>
void SpmmTRegisterBlock(const T* dy, int64_t cols, const T* values, int64_t values_stride,
                        const int32_t* sources, T* dx) {
  constexpr int64_t kWidth = kVectors * kLanes<T>;
  Vector<T> sum[kSlots][kVectors] = {};
  for (int64_t c = 0; c < cols; ++c) {
    Vector<T> loaded[kVectors];
    JAX_NM_UNROLL
    for (int v = 0; v < kVectors; ++v) loaded[v] = Load(dy + v * kLanes<T>);
    JAX_NM_UNROLL
    for (int j = 0; j < kSlots; ++j) {
      JAX_NM_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[j][v] += loaded[v] * values[j];
    }
    dy += kWidth;
    values += values_stride;
  }
  JAX_NM_UNROLL
  for (int j = 0; j < kSlots; ++j) {
    T* target = dx + sources[j] * kWidth;
    JAX_NM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      StoreRaw(target + v * kLanes<T>, Load(target + v * kLanes<T>) + sum[j][v]);
    }
  }
}

template <typename T, int kVectors, int kSlots>
void SpmmTSlots(int64_t slots, const T* dy, int64_t cols, const T* values, int64_t values_stride,
                const int32_t* sources, T* dx) {
  if (slots == kSlots) {
    SpmmTRegisterBlock<T, kVectors, kSlots>(dy, cols, values, values_stride, sources, dx);
  } else if constexpr (kSlots > 1) {
    SpmmTSlots<T, kVectors, kSlots - 1>(slots, dy, cols, values, values_stride, sources, dx);
  }
}

// All slots of one group for one panel. values is [cols, slots].
template <typename T, int kVectors = kPanelVectors>
void SpmmTGroup(int64_t width, const T* dy, int64_t cols, const T* values, int64_t slots,
                const int32_t* sources, T* dx) {
  if (width == kVectors * kLanes<T>) {
    ForEachPiece<kSpmmTSlots>(slots, [&](int64_t begin, int64_t piece) {
      SpmmTSlots<T, kVectors, kSpmmTSlots>(piece, dy, cols, values + begin, slots, sources + begin,
                                           dx);
    });
  } else if constexpr (kVectors > 1) {
    SpmmTGroup<T, kVectors - 1>(width, dy, cols, values, slots, sources, dx);
  }
}

template <typename T>
void SpmmTTask(const Job& job, int64_t task, void* scratch) {
  const Problem& p = job.problem;
  const Config& config = job.config;
  const int64_t block = task % config.window_blocks;
  const int64_t row_task = task / config.window_blocks;
  const Range rows = BlockRange(row_task % config.row_blocks, config.block_rows, p.rows);
  const int64_t batch = row_task / config.row_blocks;
  const Range depth = BlockRange(block, config.block_windows * p.m, p.depth);
  const Range slots = BlockRange(block, config.block_windows * p.n, config.active_kept);

  char* base = static_cast<char*>(scratch);
  T* dx_panels = reinterpret_cast<T*>(base);
  T* dy_panels = reinterpret_cast<T*>(base + config.y_offset);
  T* packed_values = reinterpret_cast<T*>(base + config.values_offset);
  int32_t* sources = reinterpret_cast<int32_t*>(base + config.sources_offset);

  const Matrix dy = Operand(job.first, p.dtype, p.y_layout, batch, p.rows, p.cols);
  const Matrix values = Operand(job.second, p.dtype, Layout::kRowMajor, batch, p.kept, p.cols);
  const uint8_t* indices = job.indices + batch * p.groups * p.kept;
  const MutableMatrix dx = Result(job.result, p.result_dtype, p.x_layout, batch, p.rows, p.depth);

  Zero(dx_panels, RoundUp(rows.size, kLanes<T>) * depth.size);
  for (int64_t begin = 0; begin < p.cols; begin += config.tile_cols) {
    const Range tile{begin, Min(config.tile_cols, p.cols - begin)};
    ForEachPanel<T>(rows, [&](Range panel, int64_t width, int64_t done) {
      Pack(dy, panel, tile, width, dy_panels + done * tile.size);
    });
    Pack(values, slots, tile, slots.size, packed_values);
    ForEachGroup(tile, p.vector_length, [&](int64_t group, Range group_cols) {
      DecodeSources(p, indices + group * p.kept + slots.begin, slots.begin, slots.size, sources);
      const int64_t skipped = group_cols.begin - tile.begin;
      ForEachPanel<T>(rows, [&](Range, int64_t width, int64_t done) {
        SpmmTGroup(width, dy_panels + done * tile.size + skipped * width, group_cols.size,
                   packed_values + skipped * slots.size, slots.size, sources,
                   dx_panels + done * depth.size);
      });
    });
  }
  ForEachPanel<T>(rows, [&](Range panel, int64_t width, int64_t done) {
    Unpack(dx_panels + done * depth.size, width, panel, depth, dx);
  });
}

}  // namespace
}  // namespace jax_nm
