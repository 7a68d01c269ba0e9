// Numbers in float32 as sums of three in bfloat16.
#pragma once

#include <cfloat>
#include <cstdint>

#include "hopper_staging.cuh"

namespace jax_nm {

constexpr int kSplitTerms = 3;

// Two numbers: the terms of the first in the lower halves. The first term is cut off, so that no
// finite number overflows; the second is rounded, and the third is what is left, exactly. The later
// terms of infinities and NaN are NaN. The first is one too if the NaN is quiet, as arithmetic
// makes them; of a signalling one that has nothing but its lower 16 bits set it is an infinity.
struct SplitPair {
  uint32_t terms[kSplitTerms];

  __device__ __forceinline__ SplitPair(uint32_t a, uint32_t b) {
    constexpr uint32_t kUpper = 0xffff0000u, kUpperHalves = 0x7632;
    terms[0] = __byte_perm(a, b, kUpperHalves);
    const float rest_a = __uint_as_float(a) - __uint_as_float(a & kUpper);
    const float rest_b = __uint_as_float(b) - __uint_as_float(b & kUpper);
    terms[1] = RoundPair<__nv_bfloat16>(rest_a, rest_b);
    terms[2] =
        __byte_perm(__float_as_uint(rest_a - __uint_as_float(terms[1] << 16)),
                    __float_as_uint(rest_b - __uint_as_float(terms[1] & kUpper)), kUpperHalves);
  }
};

// Finite, NaN included.
__device__ __forceinline__ float Clamp(float v) { return fminf(fmaxf(v, -FLT_MAX), FLT_MAX); }

}  // namespace jax_nm
