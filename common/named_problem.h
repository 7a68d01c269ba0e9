// A Problem from names and numbers, as the Python modules receive it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace jax_nm {

inline Op NamedOp(const std::string& name) {
  if (name == "spmm") return Op::kSpmm;
  if (name == "spmm_t") return Op::kSpmmT;
  if (name == "sddmm") return Op::kSddmm;
  throw std::invalid_argument("op must be 'spmm', 'spmm_t' or 'sddmm', got '" + name + "'");
}

inline DType NamedDType(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  if (name == "float64") return DType::kFloat64;
  throw std::invalid_argument("dtype must be 'float32', 'bfloat16', 'float16' or 'float64', got '" +
                              name + "'");
}

// No activation has the empty name.
inline Activation NamedActivation(const std::string& name) {
  if (name.empty()) return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_exact") return Activation::kGeluExact;
  if (name == "silu") return Activation::kSilu;
  throw std::invalid_argument(
      "activation must be '', 'relu', 'gelu', 'gelu_exact' or 'silu', got '" + name + "'");
}

inline Problem NamedProblem(const std::string& op, const std::string& dtype,
                            const std::string& result_dtype, int64_t batch, int64_t rows,
                            int64_t depth, int64_t cols, int32_t n, int32_t m,
                            int32_t vector_length, bool x_feature_major, bool y_feature_major,
                            bool allow_tf32, int32_t kernel, int32_t arch,
                            const std::string& activation = "", bool has_bias = false,
                            bool padded_values = false, bool transposed_values = false) {
  if (m < 1 || m > 256 || n < 1 || n > m || vector_length < 1) {
    throw std::invalid_argument(
        "the pattern must have 1 <= n <= m <= 256 and vector_length >= 1, got " +
        std::to_string(n) + ":" + std::to_string(m) + ":" + std::to_string(vector_length));
  }
  if (batch < 0 || rows < 0 || depth < 0 || cols < 0) {
    throw std::invalid_argument("batch, rows, depth and cols must not be negative");
  }
  Problem p{};
  p.op = NamedOp(op);
  p.dtype = NamedDType(dtype);
  p.result_dtype = NamedDType(result_dtype);
  p.batch = batch;
  p.rows = rows;
  p.depth = depth;
  p.cols = cols;
  p.values_cols = padded_values ? PaddedCols(cols) : cols;
  p.values_transposed = transposed_values;
  p.n = n;
  p.m = m;
  p.vector_length = vector_length;
  p.kept = (depth + m - 1) / m * n;
  p.groups = (cols + vector_length - 1) / vector_length;
  p.x_layout = x_feature_major ? Layout::kFeatureMajor : Layout::kRowMajor;
  p.y_layout = y_feature_major ? Layout::kFeatureMajor : Layout::kRowMajor;
  p.allow_tf32 = allow_tf32;
  p.kernel = kernel;
  p.arch = arch;
  p.activation = NamedActivation(activation);
  p.has_bias = has_bias;
  if (IsFused(p) && p.op != Op::kSpmm) {
    throw std::invalid_argument("only spmm has a bias or an activation, got op '" + op + "'");
  }
  if (padded_values && p.op != Op::kSpmm) {
    throw std::invalid_argument("only spmm takes padded values, got op '" + op + "'");
  }
  if (transposed_values && (p.op != Op::kSpmm || padded_values)) {
    throw std::invalid_argument("only spmm takes transposed values, and no padded ones, got op '" +
                                op + "'");
  }
  return p;
}

}  // namespace jax_nm
