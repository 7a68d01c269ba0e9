// From a Problem, a Config and pointers to what a kernel receives.
#pragma once

#include "dispatch.h"
#include "kernel_args.h"
#include "skinny_config.h"
#include "tuning.h"

namespace jax_nm {

// Whether 16-byte vectors along an axis of `extent` elements that is contiguous from `base` on are
// aligned in every line, and a line's bytes fit in 32 bits.
inline bool IsVector(const void* base, int64_t extent, int32_t element_bytes) {
  const int64_t bytes = extent * element_bytes;
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && bytes % 16 == 0 && bytes <= UINT32_MAX;
}

// As IsVector for 4 bytes and lines of bytes.
inline bool IsWord(const void* base, int64_t extent) {
  return reinterpret_cast<uintptr_t>(base) % 4 == 0 && extent % 4 == 0;
}

inline Divisor MakeDivisor(int32_t divisor) {
  int32_t log2 = 0;
  while ((int64_t{1} << log2) < divisor) ++log2;
  const uint64_t power = uint64_t{1} << (31 + log2);
  return {static_cast<uint32_t>((power + divisor - 1) / divisor), 31 + log2};
}

inline Epilogue EpilogueOf(const Problem& p, const Buffers& b) {
  return {p.has_bias ? b.bias : nullptr, p.emits_sum ? b.sum : nullptr, p.activation};
}

inline KernelArgs MakeKernelArgs(const Problem& p, const Config& config, const Buffers& b) {
  // One row lies alike in both layouts, and as a row its vectors need no padding.
  const bool x_feature_major =
      p.x_layout == Layout::kFeatureMajor && !(IsSkinny(config.kernel) && p.rows == 1);
  const bool y_feature_major = p.y_layout == Layout::kFeatureMajor;
  const int32_t bytes = ByteWidth(p.dtype);
  const int32_t result_bytes = config.split > 1 ? 4 : ByteWidth(p.result_dtype);

  KernelArgs a{};
  a.first = b.first;
  a.second = b.second;
  a.indices = b.indices;
  a.result = b.result;
  a.partials = config.split > 1 ? static_cast<float*>(b.workspace) : nullptr;
  if (config.split == 1) a.epilogue = EpilogueOf(p, b);
  a.rows = static_cast<int32_t>(p.rows);
  a.depth = static_cast<int32_t>(p.depth);
  a.cols = static_cast<int32_t>(p.cols);
  a.values_cols = static_cast<int32_t>(p.values_cols);
  a.kept = static_cast<int32_t>(p.kept);
  a.valid_kept = static_cast<int32_t>(ValidKept(p.depth, p.n, p.m));
  a.groups = static_cast<int32_t>(p.groups);
  a.n = p.n;
  a.m = p.m;
  a.vector_length = EffectiveVectorLength(p);
  a.result_is_float = p.result_dtype == DType::kFloat32;

  a.first_feature_major = p.op == Op::kSpmmT ? y_feature_major : x_feature_major;
  a.second_feature_major = p.op == Op::kSddmm ? y_feature_major : true;
  a.result_feature_major = p.op == Op::kSpmm    ? y_feature_major
                           : p.op == Op::kSpmmT ? x_feature_major
                                                : false;
  const int64_t second_extent = p.op == Op::kSddmm ? p.rows : p.values_cols;
  const int64_t result_extent = p.op == Op::kSddmm       ? p.cols
                                : a.result_feature_major ? p.rows
                                : p.op == Op::kSpmm      ? p.cols
                                                         : p.depth;
  // Only the skinny kernels copy vectors of a row-major operand.
  const bool skinny = IsSkinny(config.kernel);
  a.first_vector = a.first_feature_major ? IsVector(b.first, p.rows, bytes)
                                         : skinny && IsVector(b.first, p.depth, bytes);
  a.second_vector = a.second_feature_major && IsVector(b.second, second_extent, bytes);
  a.result_vector =
      IsVector(config.split > 1 ? b.workspace : b.result, result_extent, result_bytes) &&
      IsVector(a.epilogue.sum, result_extent, result_bytes);

  const TileCounts tiles = Tiles(p, config);
  a.batch = p.batch;
  a.outer_tiles = tiles.outer;
  a.inner_tiles = tiles.inner;
  a.steps = Steps(p, config);
  a.by_n = MakeDivisor(p.n);
  a.by_table_slots = MakeDivisor(TableSlots(p.op, config));
  a.by_vector_length = MakeDivisor(a.vector_length);
  if (IsSkinnyBulk(config.kernel)) {
    // What tensor maps hold of the bytes between matrices.
    a.bulk_values = a.second_vector && p.kept * p.values_cols * bytes < int64_t{1} << 40;
  } else if (skinny) {
    a.by_line_vectors = MakeDivisor(MakeSkinnyLayout(config, p.m, bytes).line_vectors);
  }
  if (skinny) {
    a.index_bytes = IsVector(b.indices, p.kept, 1) ? 16 : IsWord(b.indices, p.kept) ? 4 : 1;
  }
  a.config = config;
  a.layout = MakeSharedLayout(p.op, config, p.m, bytes);
  return a;
}

}  // namespace jax_nm
