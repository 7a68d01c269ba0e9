// The activations of a fused spmm on float32 sums. At infinities and NaN they give what jax.nn
// gives: gelu and silu of -inf are -inf * 0, which is NaN.
#pragma once

#include <cmath>

#include "problem.h"
#include "ptx.cuh"

namespace jax_nm {

// x / (1 + 2^-y). The denominator lies in [1, 2] for any y, so nothing overflows and both fast
// functions are within 2 ulp; the exponential of a large -y multiplies x instead. Powers below
// 2^-126 are 0.
__device__ __forceinline__ float TimesSigmoid(float x, float y) {
  const float power = ptx::Exp2(-fabsf(y));
  return (y >= 0.0f ? x : x * power) * ptx::Reciprocal(1.0f + power);
}

// Unlike fmaxf, keeps NaN.
__device__ __forceinline__ float Relu(float x) { return x < 0.0f ? 0.0f : x; }

// x / 2 * (1 + tanh u) = x / (1 + exp(-2 u)) with u = sqrt(2 / pi) * (x + 0.044715 x^3); the
// factors below are those of 2 u / ln 2.
__device__ __forceinline__ float Gelu(float x) {
  constexpr float kLinear = 2.3022082f;
  constexpr float kCubic = 0.10294324f;
  return TimesSigmoid(x, x * fmaf(kCubic * x, x, kLinear));
}

// With erfc instead of 1 + erf the digits of small results are not lost.
__device__ __forceinline__ float GeluExact(float x) {
  constexpr float kSqrtHalf = 0.70710678f;
  return 0.5f * x * erfcf(-kSqrtHalf * x);
}

__device__ __forceinline__ float Silu(float x) {
  constexpr float kLog2E = 1.4426950f;
  return TimesSigmoid(x, kLog2E * x);
}

// Applies the activation to every element. It is the same for all threads, and asked for once.
template <int kCount>
__device__ __forceinline__ void ActivateAll(Activation activation, float (&values)[kCount]) {
  const auto apply = [&](auto function) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = function(values[i]);
  };
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kRelu:
      apply([](float x) { return Relu(x); });
      break;
    case Activation::kGelu:
      apply([](float x) { return Gelu(x); });
      break;
    case Activation::kGeluExact:
      apply([](float x) { return GeluExact(x); });
      break;
    case Activation::kSilu:
      apply([](float x) { return Silu(x); });
      break;
  }
}

}  // namespace jax_nm
