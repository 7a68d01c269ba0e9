// y[r, c] = sum over kept slots j of  x[r, source(g, j)] * values[j, c],   for a handful of rows
//
// Reading values once is all the work there is: vectors run along columns, straight from the weight
// in memory, and x is small enough to stay in the first-level cache.
#pragma once

#include "kernel_pack.h"

namespace jax_nm {
namespace {

constexpr int kSkinnyBlockRows = 4;
// How far ahead along a row of values lines are fetched: the hardware alone takes 0.52 ms where
// this takes 0.39 (one row, 4096 x 4096 at 8:32, L = 32, one core).
template <typename S>
constexpr int64_t kSkinnyAhead = 512 / static_cast<int64_t>(sizeof(S));

// kRows rows times kVectors vectors of kCount columns in registers; adds to y[r * y_stride + c].
template <typename T, typename S, int kCount, int kRows, int kVectors>
void SkinnyRegisterBlock(const T* x, int64_t x_stride, const int32_t* sources, int64_t slots,
                         const S* values, int64_t values_stride, T* y, int64_t y_stride) {
  VectorN<T, kCount> sum[kRows][kVectors] = {};
  for (int64_t j = 0; j < slots; ++j) {
    const T* from = x + sources[j];
    VectorN<T, kCount> loaded[kVectors];
    JAX_NM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      loaded[v] = Load<T, kCount>(values + v * kCount);
      Prefetch(values + v * kCount + kSkinnyAhead<S>);
    }
    JAX_NM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      JAX_NM_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] += loaded[v] * from[r * x_stride];
    }
    values += values_stride;
  }
  JAX_NM_UNROLL
  for (int r = 0; r < kRows; ++r) {
    JAX_NM_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      T* target = y + r * y_stride + v * kCount;
      StoreRaw(target, LoadRaw<VectorN<T, kCount>>(target) + sum[r][v]);
    }
  }
}

// The slots of a block for one group: sources and the group's columns of values and y.
template <typename T, typename S>
struct SkinnyGroup {
  const T* x;
  int64_t x_stride;
  const int32_t* sources;
  int64_t slots;
  const S* values;
  int64_t values_stride;
  T* y;
  int64_t y_stride;
  int64_t cols;
};

// Columns [begin, cols) as vectors while they last, then one by one.
template <typename T, typename S, int kRows>
void SkinnyColumns(const SkinnyGroup<T, S>& group) {
  constexpr int kCount = kLanes<T>;
  constexpr int kVectors = kPanelVectors;
  const auto run = [&](auto count, auto vectors, int64_t c) {
    SkinnyRegisterBlock<T, S, decltype(count)::value, kRows, decltype(vectors)::value>(
        group.x, group.x_stride, group.sources, group.slots, group.values + c, group.values_stride,
        group.y + c, group.y_stride);
  };
  int64_t c = 0;
  for (; c + kVectors * kCount <= group.cols; c += kVectors * kCount) {
    run(std::integral_constant<int, kCount>{}, std::integral_constant<int, kVectors>{}, c);
  }
  for (; c + 2 * kCount <= group.cols; c += 2 * kCount) {
    run(std::integral_constant<int, kCount>{}, std::integral_constant<int, 2>{}, c);
  }
  for (; c + kCount <= group.cols; c += kCount) {
    run(std::integral_constant<int, kCount>{}, std::integral_constant<int, 1>{}, c);
  }
  for (; c < group.cols; ++c) {
    run(std::integral_constant<int, 1>{}, std::integral_constant<int, 1>{}, c);
  }
}

template <typename T, typename S, int kRows = kSkinnyBlockRows>
void SkinnyRows(int64_t rows, const SkinnyGroup<T, S>& group) {
  if (rows == kRows) {
    SkinnyColumns<T, S, kRows>(group);
  } else if constexpr (kRows > 1) {
    SkinnyRows<T, S, kRows - 1>(rows, group);
  }
}

template <typename T, typename S>
void SpmmSkinnyTaskAs(const Job& job, int64_t task, void* scratch) {
  const Problem& p = job.problem;
  const Config& config = job.config;
  const Range cols = BlockRange(task % config.col_blocks, config.block_cols, p.cols);
  const int64_t row_task = task / config.col_blocks;
  const Range rows = BlockRange(row_task % config.row_blocks, config.block_rows, p.rows);
  const int64_t batch = row_task / config.row_blocks;

  char* base = static_cast<char*>(scratch);
  T* x_rows = reinterpret_cast<T*>(base);
  T* y_rows = reinterpret_cast<T*>(base + config.y_offset);
  int32_t* sources = reinterpret_cast<int32_t*>(base + config.sources_offset);

  // Packed with rows and features exchanged: x_rows is [rows, depth], y_rows [rows, cols].
  const Matrix x = Operand(job.first, p.dtype, Exchange(p.x_layout), batch, p.depth, p.rows);
  const MutableMatrix y =
      Result(job.result, p.result_dtype, Exchange(p.y_layout), batch, p.cols, p.rows);
  const S* values = static_cast<const S*>(job.second) + batch * p.kept * p.cols;
  const uint8_t* indices = job.indices + batch * p.groups * p.kept;

  Pack(x, Range{0, p.depth}, rows, p.depth, x_rows);
  const int64_t y_stride = RoundUp(cols.size, kLanes<T>);
  Zero(y_rows, rows.size * y_stride);
  for (int64_t first = 0; first < config.active_kept; first += config.skinny_slots) {
    const int64_t slots = Min(config.skinny_slots, config.active_kept - first);
    const int64_t window_depth = first / p.n * p.m;
    ForEachGroup(cols, p.vector_length, [&](int64_t group, Range group_cols) {
      DecodeSources(p, indices + group * p.kept + first, first, slots, sources);
      ForEachPiece<kSkinnyBlockRows>(rows.size, [&](int64_t begin, int64_t piece) {
        SkinnyRows<T, S>(piece, {x_rows + begin * p.depth + window_depth, p.depth, sources, slots,
                                 values + first * p.cols + group_cols.begin, p.cols,
                                 y_rows + begin * y_stride + group_cols.begin - cols.begin,
                                 y_stride, group_cols.size});
      });
    });
  }
  Unpack(y_rows, y_stride, cols, rows, y);
}

template <typename T>
void SpmmSkinnyTask(const Job& job, int64_t task, void* scratch) {
  if constexpr (sizeof(T) == 8) {
    SpmmSkinnyTaskAs<T, double>(job, task, scratch);
  } else if (job.problem.dtype == DType::kFloat32) {
    SpmmSkinnyTaskAs<T, float>(job, task, scratch);
  } else if (job.problem.dtype == DType::kBFloat16) {
    SpmmSkinnyTaskAs<T, BFloat16>(job, task, scratch);
  } else {
    SpmmSkinnyTaskAs<T, Float16>(job, task, scratch);
  }
}

}  // namespace
}  // namespace jax_nm
