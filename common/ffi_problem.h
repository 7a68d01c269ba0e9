// From XLA buffers and attributes to a Problem, or to an error: the only validation in C++.
//
// The public Python functions report user mistakes; what is checked here is what memory safety
// needs, so a message that comes from this file names an internal contract that was broken.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <string>
#include <utility>

#include "problem.h"
#include "xla/ffi/api/ffi.h"

namespace jax_nm {

namespace ffi = ::xla::ffi;

// Bind() order of the attributes is that of this list, for every target on every platform.
struct Attributes {
  int32_t n;
  int32_t m;
  int32_t vector_length;
  int32_t layout;
  int32_t flags;
  int32_t kernel;
  int32_t arch;
};

inline std::string Join(std::initializer_list<int64_t> dims) {
  std::ostringstream out;
  const char* separator = "(";
  for (int64_t dim : dims) {
    out << separator << dim;
    separator = ", ";
  }
  out << ")";
  return out.str();
}

inline std::string ShapeString(ffi::AnyBuffer::Dimensions dims) {
  std::ostringstream out;
  out << "(";
  for (size_t i = 0; i < dims.size(); ++i) out << (i ? ", " : "") << dims[i];
  out << ")";
  return out.str();
}

inline ffi::ErrorOr<DType> ToDType(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::F32:
      return DType::kFloat32;
    case ffi::BF16:
      return DType::kBFloat16;
    case ffi::F16:
      return DType::kFloat16;
    case ffi::F64:
      return DType::kFloat64;
    default:
      return ffi::Unexpected(ffi::Error::InvalidArgument(
          "jax_nm: expected float32, bfloat16, float16 or float64, got XLA element type " +
          std::to_string(static_cast<int>(dtype))));
  }
}

inline ffi::Error CheckShape(const char* target, const char* name, ffi::AnyBuffer::Dimensions dims,
                             std::initializer_list<int64_t> expected) {
  bool same = dims.size() == expected.size();
  for (size_t i = 0; same && i < expected.size(); ++i) same = dims[i] == expected.begin()[i];
  if (same) return ffi::Error::Success();
  return ffi::Error::InvalidArgument(std::string(target) + ": expected " + name + " of shape " +
                                     Join(expected) + ", got " + ShapeString(dims));
}

inline bool IsPattern(int32_t n, int32_t m, int32_t vector_length) {
  return m >= 1 && m <= 256 && n >= 1 && n <= m && vector_length >= 1;
}

inline std::string ExpectedPattern(int32_t n, int32_t m, int32_t vector_length) {
  return "expected a pattern with 1 <= n <= m <= 256 and vector_length >= 1, got " +
         std::to_string(n) + ":" + std::to_string(m) + ":" + std::to_string(vector_length);
}

// Roles of the three floating-point buffers of each operation:
//   spmm:   x, values -> y        spmm_t: dy, values -> dx        sddmm: x, dy -> dvalues
// `first` and `second` are the operands in that order. All buffers have rank 3, with the batch axis
// in front: x-like [batch, rows, depth], y-like [batch, rows, cols], values-like
// [batch, kept, cols], where spmm also takes rows that are padded to a multiple of 8, or where
// `layout` says so, transposed values [batch, cols, PaddedKept(kept)]; indices
// [batch, groups, kept]. Dimensions are logical: `layout` says how the
// x-like and the y-like buffer lie in memory; the others are row-major.
inline ffi::ErrorOr<Problem> MakeProblem(Op op, const Attributes& attributes,
                                         const ffi::AnyBuffer& first, const ffi::AnyBuffer& second,
                                         const ffi::AnyBuffer& indices,
                                         const ffi::AnyBuffer& result,
                                         const char* fused_target = nullptr) {
  constexpr const char* kTargets[] = {"jax_nm.spmm", "jax_nm.spmm_t", "jax_nm.sddmm"};
  const char* target = fused_target != nullptr ? fused_target : kTargets[static_cast<int>(op)];
  const auto fail = [target](const std::string& what) {
    return ffi::Unexpected(ffi::Error::InvalidArgument(std::string(target) + ": " + what));
  };

  const Attributes& a = attributes;
  if (!IsPattern(a.n, a.m, a.vector_length)) {
    return fail(ExpectedPattern(a.n, a.m, a.vector_length));
  }
  const int32_t layouts =
      kXFeatureMajor | kYFeatureMajor | (op == Op::kSpmm ? kValuesTransposed : 0);
  if (a.layout < 0 || a.layout > layouts) {
    return fail("expected a layout code from 0 to " + std::to_string(layouts) + ", got " +
                std::to_string(a.layout));
  }

  const ffi::AnyBuffer& x_like = op == Op::kSpmmT ? result : first;
  const ffi::AnyBuffer& y_like = op == Op::kSpmm ? result : (op == Op::kSpmmT ? first : second);
  const ffi::AnyBuffer& values_like = op == Op::kSddmm ? result : second;
  for (const ffi::AnyBuffer* buffer : {&x_like, &y_like, &values_like, &indices}) {
    if (buffer->dimensions().size() != 3) {
      return fail("expected buffers of rank 3, got one of shape " +
                  ShapeString(buffer->dimensions()));
    }
  }

  Problem p{};
  p.op = op;
  p.batch = x_like.dimensions()[0];
  p.rows = x_like.dimensions()[1];
  p.depth = x_like.dimensions()[2];
  p.cols = y_like.dimensions()[2];
  // spmm takes values whose rows are padded to whole 16 bytes.
  p.values_transposed = (a.layout & kValuesTransposed) != 0;
  p.values_cols = op == Op::kSpmm ? values_like.dimensions()[2] : p.cols;
  if (p.values_transposed || p.values_cols != PaddedCols(p.cols)) p.values_cols = p.cols;
  p.n = a.n;
  p.m = a.m;
  p.vector_length = a.vector_length;
  p.kept = (p.depth + p.m - 1) / p.m * p.n;
  p.groups = (p.cols + p.vector_length - 1) / p.vector_length;
  p.x_layout = a.layout & kXFeatureMajor ? Layout::kFeatureMajor : Layout::kRowMajor;
  p.y_layout = a.layout & kYFeatureMajor ? Layout::kFeatureMajor : Layout::kRowMajor;
  p.allow_tf32 = (a.flags & kAllowTF32) != 0;
  p.kernel = a.kernel;
  p.arch = a.arch;

  if (ffi::Error e = CheckShape(target, "the rows-by-cols operand", y_like.dimensions(),
                                {p.batch, p.rows, p.cols});
      e.failure()) {
    return ffi::Unexpected(e);
  }
  const ffi::Error shape = p.values_transposed
                               ? CheckShape(target, "transposed values", values_like.dimensions(),
                                            {p.batch, p.cols, PaddedKept(p.kept)})
                               : CheckShape(target, "values", values_like.dimensions(),
                                            {p.batch, p.kept, p.values_cols});
  if (shape.failure()) return ffi::Unexpected(shape);
  if (ffi::Error e =
          CheckShape(target, "indices", indices.dimensions(), {p.batch, p.groups, p.kept});
      e.failure()) {
    return ffi::Unexpected(e);
  }

  if (indices.element_type() != ffi::U8) return fail("expected indices of dtype uint8");
  ffi::ErrorOr<DType> dtype = ToDType(first.element_type());
  if (dtype.has_error()) return ffi::Unexpected(dtype.error());
  if (second.element_type() != first.element_type()) {
    return fail("expected both floating-point operands to have one dtype");
  }
  ffi::ErrorOr<DType> result_dtype = ToDType(result.element_type());
  if (result_dtype.has_error()) return ffi::Unexpected(result_dtype.error());
  p.dtype = dtype.value();
  p.result_dtype = result_dtype.value();
  if (p.result_dtype != p.dtype &&
      !(ByteWidth(p.dtype) == 2 && p.result_dtype == DType::kFloat32)) {
    return fail(
        "expected the result to have the operands' dtype, or float32 for half-precision "
        "operands");
  }
  return p;
}

// A fused spmm has two more buffers: bias, float32 [batch, cols], or [batch, 0] where there is
// none; and sum, with the shape, dtype and layout of y, or of shape (0,) where it is not asked for.
inline ffi::ErrorOr<Problem> MakeFusedProblem(const Attributes& attributes, int32_t activation,
                                              const ffi::AnyBuffer& x, const ffi::AnyBuffer& values,
                                              const ffi::AnyBuffer& indices,
                                              const ffi::AnyBuffer& bias, const ffi::AnyBuffer& y,
                                              const ffi::AnyBuffer& sum) {
  constexpr const char* kTarget = "jax_nm.spmm_fused";
  const auto fail = [](const std::string& what) {
    return ffi::Unexpected(ffi::Error::InvalidArgument(std::string(kTarget) + ": " + what));
  };
  ffi::ErrorOr<Problem> made = MakeProblem(Op::kSpmm, attributes, x, values, indices, y, kTarget);
  if (made.has_error()) return made;
  Problem p = made.value();
  if (activation < 0 || activation > static_cast<int32_t>(Activation::kSilu)) {
    return fail("expected an activation code from 0 to 4, got " + std::to_string(activation));
  }
  p.activation = static_cast<Activation>(activation);
  if (bias.element_type() != ffi::F32) return fail("expected a bias of dtype float32");
  p.has_bias = bias.dimensions().size() == 2 && bias.dimensions()[1] > 0;
  if (ffi::Error e = CheckShape(kTarget, "bias", bias.dimensions(),
                                {p.batch, p.has_bias ? p.cols : int64_t{0}});
      e.failure()) {
    return ffi::Unexpected(e);
  }
  if (sum.element_type() != y.element_type()) {
    return fail("expected the sum to have the dtype of the result");
  }
  p.emits_sum = sum.element_count() > 0;
  if (p.emits_sum) {
    if (ffi::Error e = CheckShape(kTarget, "the sum", sum.dimensions(), {p.batch, p.rows, p.cols});
        e.failure()) {
      return ffi::Unexpected(e);
    }
  }
  return p;
}

// Any number of leading axes, which are the batch: values [..., kept, cols],
// indices [..., groups, kept] -> dense [..., depth, cols].
inline ffi::ErrorOr<Expansion> MakeExpansion(int32_t n, int32_t m, int32_t vector_length,
                                             const ffi::AnyBuffer& values,
                                             const ffi::AnyBuffer& indices,
                                             const ffi::AnyBuffer& dense) {
  constexpr const char* kTarget = "jax_nm.expand";
  const auto fail = [](const std::string& what) {
    return ffi::Unexpected(ffi::Error::InvalidArgument(std::string(kTarget) + ": " + what));
  };
  if (!IsPattern(n, m, vector_length)) return fail(ExpectedPattern(n, m, vector_length));
  const auto dims = dense.dimensions();
  const size_t rank = dims.size();
  if (rank < 2) return fail("expected a dense weight of rank 2 or more");
  Expansion e{};
  e.batch = 1;
  for (size_t i = 0; i + 2 < rank; ++i) e.batch *= dims[i];
  e.depth = dims[rank - 2];
  e.cols = dims[rank - 1];
  e.n = n;
  e.m = m;
  e.vector_length = vector_length;
  e.kept = (e.depth + m - 1) / m * n;
  e.groups = (e.cols + vector_length - 1) / vector_length;
  const std::pair<const ffi::AnyBuffer*, std::pair<int64_t, int64_t>> operands[] = {
      {&values, {e.kept, e.cols}}, {&indices, {e.groups, e.kept}}};
  for (const auto& [buffer, sizes] : operands) {
    const auto found = buffer->dimensions();
    bool same = found.size() == rank;
    for (size_t i = 0; same && i + 2 < rank; ++i) same = found[i] == dims[i];
    if (!same || found[rank - 2] != sizes.first || found[rank - 1] != sizes.second) {
      return fail("expected an operand of shape (..., " + std::to_string(sizes.first) + ", " +
                  std::to_string(sizes.second) + "), with the leading axes of " +
                  ShapeString(dims) + ", got " + ShapeString(found));
    }
  }
  if (indices.element_type() != ffi::U8) return fail("expected indices of dtype uint8");
  ffi::ErrorOr<DType> dtype = ToDType(values.element_type());
  if (dtype.has_error()) return ffi::Unexpected(dtype.error());
  if (dense.element_type() != values.element_type()) {
    return fail("expected a dense weight of the dtype of the values");
  }
  e.dtype = dtype.value();
  if (e.cols * ByteWidth(e.dtype) > UINT32_MAX) return fail("expected rows of less than 4 GB");
  return e;
}

}  // namespace jax_nm
