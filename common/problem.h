// What a kernel is asked to do, in plain C++: no framework header above this line or below it.
//
//   y[r, c] = sum over kept slots j of  x[r, source(g, j)] * values[j, c],      g = c / L
//
// The three operations are the three partial maps of the same trilinear form, so one description
// serves them all. "x-like" is x or its cotangent dx, [rows, depth]; "y-like" is y or dy,
// [rows, cols].
#pragma once

#include <cstdint>

namespace jax_nm {

enum class Op : int32_t {
  kSpmm = 0,   // (x, values) -> y
  kSpmmT = 1,  // (dy, values) -> dx
  kSddmm = 2,  // (x, dy) -> dvalues
};

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

constexpr int ByteWidth(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// How a [rows, features] matrix lies in memory. Feature-major keeps rows contiguous, so that a
// gathered reduction index is a contiguous read.
enum class Layout : int32_t { kRowMajor = 0, kFeatureMajor = 1 };

// The bits of the `layout` attribute of the FFI targets.
constexpr int32_t kXFeatureMajor = 1;
constexpr int32_t kYFeatureMajor = 2;
constexpr int32_t kValuesTransposed = 4;

// What a fused spmm applies to each sum, once the bias is added. The values are those of the
// `activation` attribute of its FFI target.
enum class Activation : int32_t {
  kNone = 0,
  kRelu = 1,
  kGelu = 2,       // tanh form
  kGeluExact = 3,  // erf form
  kSilu = 4,
};

// The bits of the `flags` attribute of the FFI targets.
constexpr int32_t kAllowTF32 = 1;  // not HIGHEST: float32 operands may be rounded to TF32, partial
                                   // sums of half-precision ones to bfloat16

// Rows of values of an spmm may be padded with zeros to whole 16 bytes of half precision.
constexpr int64_t PaddedCols(int64_t cols) { return (cols + 7) / 8 * 8; }

// Transposed values have columns of whole 16 bytes of float32, padded likewise.
constexpr int64_t PaddedKept(int64_t kept) { return (kept + 3) / 4 * 4; }

struct Problem {
  Op op;
  DType dtype;         // of both floating-point operands
  DType result_dtype;  // `dtype`, or float32 for a half-precision `dtype`
  int64_t batch;       // product of the weight's leading axes; 1 for a plain weight
  int64_t rows;
  int64_t depth;
  int64_t cols;
  int64_t values_cols;  // of a row of values in memory: cols, or in spmm PaddedCols(cols)
  int64_t kept;         // ceil(depth / m) * n
  int64_t groups;       // ceil(cols / vector_length)
  int32_t n;
  int32_t m;
  int32_t vector_length;
  Layout x_layout;         // of x or dx, each [batch, rows, depth]
  Layout y_layout;         // of y or dy, each [batch, rows, cols]
  bool values_transposed;  // spmm: [batch, cols, PaddedKept(kept)] in memory
  bool allow_tf32;
  int32_t kernel;  // 0: the tuning function chooses
  int32_t arch;    // compute capability * 10, e.g. 90; 0: the device's own (CPU kernels ignore it)
  // A fused spmm: y = activation(sum + bias), in float32 and rounded once.
  Activation activation;
  bool has_bias;   // float32 [batch, cols]
  bool emits_sum;  // writes sum + bias too, as y is written
};

// The dense weight [batch, depth, cols] of a compressed one, in the same dtype.
struct Expansion {
  DType dtype;
  int64_t batch;
  int64_t depth;
  int64_t cols;
  int64_t kept;
  int64_t groups;
  int32_t n;
  int32_t m;
  int32_t vector_length;
};

constexpr bool IsFused(const Problem& p) {
  return p.has_bias || p.activation != Activation::kNone || p.emits_sum;
}

// Slots of a ragged last window beyond its `depth % m` rows hold nothing: every kernel skips them,
// whatever their index and value, and `sddmm` writes 0 there.
constexpr bool IsPadding(int64_t depth, int32_t n, int32_t m, int64_t slot) {
  const int64_t tail = depth % m;
  return tail > 0 && tail < n && slot / n == depth / m && slot % n >= tail;
}

// The reduction index that a slot reads. Any index byte is memory-safe: it is clamped to its
// window and to the depth.
constexpr int64_t Source(int64_t depth, int32_t n, int32_t m, int64_t slot, uint8_t index) {
  const int64_t offset = index < m ? index : m - 1;
  const int64_t source = slot / n * m + offset;
  return source < depth ? source : depth - 1;
}

}  // namespace jax_nm
