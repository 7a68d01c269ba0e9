// What every kernel but Hopper's receives, by value: the problem in 32-bit numbers, the
// configuration, and pointers. Plain C++.
#pragma once

#include <cstdint>

#include "config.h"

namespace jax_nm {

// Division of numbers below 2^31 by a number that is fixed for a launch: a multiplication and a
// shift instead of the thirty instructions of a 32-bit division. With l = ceil(log2(divisor)) and
// multiplier = ceil(2^(31 + l) / divisor), which is below 2^32, the quotient is exact (Granlund and
// Montgomery, 1994, theorem 4.2).
struct Divisor {
  uint32_t multiplier;
  int32_t shift;

  constexpr int32_t Quotient(int32_t dividend) const {
    return static_cast<int32_t>(uint64_t{static_cast<uint32_t>(dividend)} * multiplier >> shift);
  }
};

// What a fused spmm does to its sums where final results are stored: in the kernel, or where
// partial results are added up.
struct Epilogue {
  const float* bias;  // [batch, cols]; null where there is none
  void* sum;          // for sum + bias, as the result lies; null if not asked for
  Activation activation;
};

struct KernelArgs {
  const void* first;  // roles as in ffi_problem.h: (x, values), (dy, values), (x, dy)
  const void* second;
  const uint8_t* indices;
  void* result;
  float* partials;    // [split, ...result] float32; null when nothing is split
  Epilogue epilogue;  // does nothing when something is split

  int32_t rows;
  int32_t depth;
  int32_t cols;
  int32_t values_cols;  // of a row of values in memory
  int32_t kept;
  int32_t valid_kept;  // slots before the padding of a ragged last window
  int32_t groups;
  int32_t n;
  int32_t m;
  int32_t vector_length;
  Divisor by_n;
  Divisor by_table_slots;  // slots per group in a table of decoded indices
  Divisor by_vector_length;
  Divisor by_line_vectors;  // skinny: vectors of a staged row of x
  int32_t index_bytes;      // skinny: of indices that are copied at a time, 16, 4 or 1
  bool bulk_values;         // skinny: values arrive through their tensor map

  bool first_feature_major;  // how the first operand lies, if it is x- or y-like
  bool second_feature_major;
  bool result_feature_major;
  bool first_vector;  // rows of 16-byte aligned vectors along the contiguous axis
  bool second_vector;
  bool result_vector;
  bool result_is_float;

  // Tiles are numbered along one grid axis, because y and z end at 65535.
  int64_t batch;
  int64_t first_tile;
  int32_t outer_tiles;
  int32_t inner_tiles;
  int32_t steps;  // of the whole reduction

  Config config;
  SharedLayout layout;
};

// Padding slots are the last ones, so one bound stands for IsPadding.
constexpr int64_t ValidKept(int64_t depth, int32_t n, int32_t m) {
  const int64_t tail = depth % m;
  return depth / m * n + (tail < n ? tail : n);
}

struct TileCoordinates {
  int64_t batch;
  int32_t split;
  int32_t outer;
  int32_t inner;
};

// Neighbouring blocks share operands in L2: 8 outer tiles go with every inner tile before the next
// 8 outer ones begin.
constexpr int32_t kRasterOuter = 8;

constexpr TileCoordinates LocateTile(int64_t tile, int32_t outer_tiles, int32_t inner_tiles,
                                     int32_t split) {
  const int64_t per_batch = int64_t{outer_tiles} * inner_tiles;
  const int64_t layer = tile / per_batch;
  const int64_t within = tile % per_batch;
  const int64_t band = within / (int64_t{kRasterOuter} * inner_tiles);
  const int64_t in_band = within % (int64_t{kRasterOuter} * inner_tiles);
  const int64_t left = outer_tiles - band * kRasterOuter;
  const int64_t height = left < kRasterOuter ? left : kRasterOuter;
  return {layer / split, static_cast<int32_t>(layer % split),
          static_cast<int32_t>(band * kRasterOuter + in_band % height),
          static_cast<int32_t>(in_band / height)};
}

// Steps [first, last) of one of `split` even shares.
struct StepRange {
  int32_t first;
  int32_t last;
};
constexpr StepRange StepsOf(int32_t share, int32_t split, int32_t steps) {
  return {static_cast<int32_t>(int64_t{steps} * share / split),
          static_cast<int32_t>(int64_t{steps} * (share + 1) / split)};
}

// problem.h's Source in 32-bit arithmetic, which is several times cheaper on the device.
constexpr int32_t SourceOf(const KernelArgs& a, int32_t slot, uint8_t index) {
  const int32_t offset = index < a.m ? index : a.m - 1;
  const int32_t source = a.by_n.Quotient(slot) * a.m + offset;
  return source < a.depth ? source : a.depth - 1;
}

}  // namespace jax_nm
