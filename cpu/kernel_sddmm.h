// dvalues[j, c] = sum over rows r of  x[r, source(g, j)] * dy[r, c],      g = c / L
#pragma once

#include "kernel_pack.h"

namespace jax_nm {
namespace {

// Slots x columns in registers, one vector of partial sums each: as many accumulators as hide the
// latency of the multiply-add, and a multiple of the lanes, so that they are summed together.
constexpr int kSddmmSlots = kPanelVectors;
constexpr int kSddmmCols = 4;

// `slots` of the kSddmmSlots sources are real, the others repeat the last one.
template <typename T, int kCols>
void SddmmRegisterBlock(const T* x, const int32_t* sources, int64_t slots, const T* dy,
                        int64_t width, T* dvalues, int64_t dvalues_stride) {
  constexpr int kSums = kSddmmSlots * kCols;
  constexpr int kRounds = (kSums + kLanes<T> - 1) / kLanes<T>;
  const T* from[kSddmmSlots];
  JAX_NM_UNROLL
  for (int j = 0; j < kSddmmSlots; ++j) {
    from[j] = x + static_cast<int64_t>(sources[Min(j, slots - 1)]) * width;
  }
  Vector<T> sum[kRounds * kLanes<T>] = {};
  for (int64_t r = 0; r < width; r += kLanes<T>) {
    Vector<T> loaded[kCols];
    JAX_NM_UNROLL
    for (int c = 0; c < kCols; ++c) loaded[c] = Load(dy + c * width + r);
    JAX_NM_UNROLL
    for (int j = 0; j < kSddmmSlots; ++j) {
      const Vector<T> gathered = Load(from[j] + r);
      JAX_NM_UNROLL
      for (int c = 0; c < kCols; ++c) sum[j * kCols + c] += gathered * loaded[c];
    }
  }
  T totals[kRounds * kLanes<T>];
  JAX_NM_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    StoreRaw(totals + round * kLanes<T>, SumLanes<T>(sum + round * kLanes<T>));
  }
  for (int64_t j = 0; j < slots; ++j) {
    JAX_NM_UNROLL
    for (int c = 0; c < kCols; ++c) dvalues[j * dvalues_stride + c] += totals[j * kCols + c];
  }
}

template <typename T, int kCols = kSddmmCols>
void SddmmColumns(int64_t cols, const T* x, const int32_t* sources, int64_t slots, const T* dy,
                  int64_t width, T* dvalues, int64_t dvalues_stride) {
  if (cols == kCols) {
    SddmmRegisterBlock<T, kCols>(x, sources, slots, dy, width, dvalues, dvalues_stride);
  } else if constexpr (kCols > 1) {
    SddmmColumns<T, kCols - 1>(cols, x, sources, slots, dy, width, dvalues, dvalues_stride);
  }
}

template <typename T>
void SddmmTask(const Job& job, int64_t task, void* scratch) {
  const Problem& p = job.problem;
  const Config& config = job.config;
  const Range cols = BlockRange(task % config.col_blocks, config.block_cols, p.cols);
  const int64_t kept_task = task / config.col_blocks;
  const int64_t block = kept_task % config.window_blocks;
  const int64_t batch = kept_task / config.window_blocks;
  const Range depth = BlockRange(block, config.block_windows * p.m, p.depth);
  const Range kept = BlockRange(block, config.block_windows * p.n, p.kept);
  const Range slots = BlockRange(block, config.block_windows * p.n, config.active_kept);

  char* base = static_cast<char*>(scratch);
  T* x_panel = reinterpret_cast<T*>(base);
  T* dy_panel = reinterpret_cast<T*>(base + config.y_offset);
  T* dvalues_block = reinterpret_cast<T*>(base + config.values_offset);
  int32_t* sources = reinterpret_cast<int32_t*>(base + config.sources_offset);

  const Matrix x = Operand(job.first, p.dtype, p.x_layout, batch, p.rows, p.depth);
  const Matrix dy = Operand(job.second, p.dtype, p.y_layout, batch, p.rows, p.cols);
  const uint8_t* indices = job.indices + batch * p.groups * p.kept;
  // As a matrix whose "features" are the slots, dvalues[kept, cols] is feature-major.
  const MutableMatrix dvalues =
      Result(job.result, p.result_dtype, Layout::kFeatureMajor, batch, p.cols, p.kept);

  Zero(dvalues_block, kept.size * cols.size);
  for (int64_t begin = 0; begin < p.rows; begin += config.block_rows) {
    const Range rows{begin, Min(config.block_rows, p.rows - begin)};
    const int64_t width = RoundUp(rows.size, kLanes<T>);
    Pack(x, rows, depth, width, x_panel);
    Pack(dy, rows, cols, width, dy_panel);
    ForEachGroup(cols, p.vector_length, [&](int64_t group, Range group_cols) {
      DecodeSources(p, indices + group * p.kept + slots.begin, slots.begin, slots.size, sources);
      const int64_t skipped = group_cols.begin - cols.begin;
      for (int64_t j = 0; j < slots.size; j += kSddmmSlots) {
        ForEachPiece<kSddmmCols>(group_cols.size, [&](int64_t first, int64_t piece) {
          SddmmColumns<T>(piece, x_panel, sources + j, Min(kSddmmSlots, slots.size - j),
                          dy_panel + (skipped + first) * width, width,
                          dvalues_block + j * cols.size + skipped + first, cols.size);
        });
      }
    });
  }
  Unpack(dvalues_block, cols.size, cols, kept, dvalues);
}

}  // namespace
}  // namespace jax_nm
