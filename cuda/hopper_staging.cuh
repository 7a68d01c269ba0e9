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

// The sums of a thread of one 64 x N tile: sums 4 j to 4 j + 3 lie at line lane / 4 of the warp's
// 16 lines of M (the second pair 8 lines below) and columns 8 j + 2 (lane % 4) and the next of N.
//
// A round of the epilogue is 64 of M by one line of N, 128 bytes. Staged plainly, a line holds N;
// staged transposed, a line holds M. Both carry the 128-byte swizzle that the tensor map undoes.
template <class Out>
struct HopperStaging {
  static constexpr int32_t kLine = kHopperLineBytes / static_cast<int32_t>(sizeof(Out));
  static constexpr int32_t kSums = kLine / 2;  // of a thread in a round
  static constexpr int32_t kTransposedSlabs = 64 / kLine;

  static __device__ __forceinline__ void Plain(uint32_t to, const float* sums, int32_t warp,
                                               int32_t lane) {
    if constexpr (sizeof(Out) == 2) {
      const int32_t line = warp * 16 + lane % 16;
      const uint32_t line_address = to + line * kHopperLineBytes;
#pragma unroll
      for (int32_t j = 0; j < kLine / 8; j += 2) {
        const int32_t chunk = j + lane / 16;
        ptx::StoreMatrices(line_address + (chunk ^ (line % 8)) * 16, Pairs(sums + j * 4));
      }
    } else {
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
  }

  static __device__ __forceinline__ void Transposed(uint32_t to, const float* sums, int32_t warp,
                                                    int32_t lane) {
    if constexpr (sizeof(Out) == 2) {
      const int32_t chunk = warp * 2 + lane / 8 % 2;
      const uint32_t chunk_address = to + (chunk ^ (lane % 8)) * 16;
#pragma unroll
      for (int32_t j = 0; j < kLine / 8; j += 2) {
        const int32_t line = (j + lane / 16) * 8 + lane % 8;
        ptx::StoreMatricesTransposed(chunk_address + line * kHopperLineBytes, Pairs(sums + j * 4));
      }
    } else {
#pragma unroll
      for (int32_t j = 0; j < kLine / 8; ++j) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          const int32_t m = warp * 16 + lane / 4 + i / 2 * 8;
          const int32_t line = j * 8 + lane % 4 * 2 + i % 2;
          const int32_t chunk = m % kLine / 4;
          ptx::StoreShared(to + m / kLine * (kLine * kHopperLineBytes) + line * kHopperLineBytes +
                               (chunk ^ (line % 8)) * 16 + m % 4 * 4,
                           sums[j * 4 + i]);
        }
      }
    }
  }

 private:
  // Two columns of 8 of N by two of M: the operands of one store.
  static __device__ __forceinline__ ptx::FourMatrices Pairs(const float* sums) {
    return {{RoundPair<Out>(sums[0], sums[1]), RoundPair<Out>(sums[2], sums[3]),
             RoundPair<Out>(sums[4], sums[5]), RoundPair<Out>(sums[6], sums[7])}};
  }
};

}  // namespace jax_nm
