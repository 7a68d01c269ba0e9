// From the sums of a wgmma to the boxes of shared memory that TMA stores.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "hopper_config.h"
#include "ptx_hopper.cuh"

namespace jax_nm {

template <class T>
__device__ __forceinline__ uint32_t RoundPair(float a, float b);
template <>
__device__ __forceinline__ uint32_t RoundPair<__nv_bfloat16>(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t RoundPair<__half>(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The sums of a thread of one 64 x N tile of columns by rows, or in sddmm by slots: sums 4 j to 4 j
// + 3 lie at line lane / 4 of the warp's 16 columns (the second pair 8 columns later) and rows 8 j
// + 2 (lane % 4) and the next.
//
// A round of the epilogue is 64 columns by one line of rows, 128 bytes. For a feature-major result
// a line in shared memory holds rows, for a row-major one columns. Both carry the 128-byte swizzle
// that the tensor map undoes.
template <class Out, int32_t kSums>
struct HopperStaging {
  static constexpr int32_t kLine = kHopperLineBytes / static_cast<int32_t>(sizeof(Out));
  static constexpr int32_t kRowMajorSlabs = 64 / kLine;

  // A thread's results, two in a register.
  struct Rounded {
    uint32_t pairs[kSums / 2];
  };

  static __device__ __forceinline__ void Round(const float (&sums)[kSums], Rounded& rounded) {
#pragma unroll
    for (int32_t i = 0; i < kSums / 2; ++i) {
      rounded.pairs[i] = RoundPair<Out>(sums[2 * i], sums[2 * i + 1]);
    }
  }

  static __device__ __forceinline__ void FeatureMajor(uint32_t to, const Rounded& rounded,
                                                      int32_t round, int32_t warp, int32_t lane) {
    const int32_t line = warp * 16 + lane % 16;
    const uint32_t line_address = to + line * kHopperLineBytes;
#pragma unroll
    for (int32_t j = 0; j < kLine / 8; j += 2) {
      const int32_t chunk = j + lane / 16;
      ptx::StoreMatrices(line_address + (chunk ^ (line % 8)) * 16, Four(rounded, round, j));
    }
  }

  static __device__ __forceinline__ void RowMajor(uint32_t to, const Rounded& rounded,
                                                  int32_t round, int32_t warp, int32_t lane) {
    const int32_t chunk = warp * 2 + lane / 8 % 2;
    const uint32_t chunk_address = to + (chunk ^ (lane % 8)) * 16;
#pragma unroll
    for (int32_t j = 0; j < kLine / 8; j += 2) {
      const int32_t line = (j + lane / 16) * 8 + lane % 8;
      ptx::StoreMatricesTransposed(chunk_address + line * kHopperLineBytes,
                                   Four(rounded, round, j));
    }
  }

 private:
  // Twice 8 rows by twice 8 columns: the operands of one store.
  static __device__ __forceinline__ ptx::FourMatrices Four(const Rounded& rounded, int32_t round,
                                                           int32_t j) {
    const uint32_t* pairs = rounded.pairs + round * (kLine / 4) + j * 2;
    return {{pairs[0], pairs[1], pairs[2], pairs[3]}};
  }
};

// In float32 nothing is rounded.
template <int32_t kSums>
struct HopperStaging<float, kSums> {
  static constexpr int32_t kLine = kHopperLineBytes / 4;
  static constexpr int32_t kRowMajorSlabs = 64 / kLine;
  static constexpr int32_t kRoundSums = kLine / 2;

  struct Rounded {
    float sums[kSums];
  };

  static __device__ __forceinline__ void Round(const float (&sums)[kSums], Rounded& rounded) {
#pragma unroll
    for (int32_t i = 0; i < kSums; ++i) rounded.sums[i] = sums[i];
  }

  static __device__ __forceinline__ void FeatureMajor(uint32_t to, const Rounded& rounded,
                                                      int32_t round, int32_t warp, int32_t lane) {
    const float* sums = rounded.sums + round * kRoundSums;
    const int32_t line = warp * 16 + lane / 4;
    const uint32_t line_address = to + line * kHopperLineBytes + lane % 2 * 8;
#pragma unroll
    for (int32_t j = 0; j < kLine / 8; ++j) {
      const int32_t chunk = 2 * j + lane % 4 / 2;
      const uint32_t address = line_address + (chunk ^ (line % 8)) * 16;
      ptx::StoreShared(address, sums[j * 4], sums[j * 4 + 1]);
      ptx::StoreShared(address + 8 * kHopperLineBytes, sums[j * 4 + 2], sums[j * 4 + 3]);
    }
  }

  static __device__ __forceinline__ void RowMajor(uint32_t to, const Rounded& rounded,
                                                  int32_t round, int32_t warp, int32_t lane) {
    const float* sums = rounded.sums + round * kRoundSums;
#pragma unroll
    for (int32_t j = 0; j < kLine / 8; ++j) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t col = warp * 16 + lane / 4 + i / 2 * 8;
        const int32_t line = j * 8 + lane % 4 * 2 + i % 2;
        const int32_t chunk = col % kLine / 4;
        ptx::StoreShared(to + col / kLine * (kLine * kHopperLineBytes) + line * kHopperLineBytes +
                             (chunk ^ (line % 8)) * 16 + col % 4 * 4,
                         sums[j * 4 + i]);
      }
    }
  }
};

}  // namespace jax_nm
