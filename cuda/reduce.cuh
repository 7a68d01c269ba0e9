// The sum of split partial results, in a fixed order, rounded once.
#pragma once

#include <cstdint>

#include "tile_io.cuh"

namespace jax_nm {

constexpr int kReduceThreads = 256;

// kVector consecutive elements for a thread; the partial results and `result` are aligned for that.
template <class Out, int kVector>
__global__ void __launch_bounds__(kReduceThreads)
    ReduceKernel(const float* partials, int32_t split, int64_t elements, Out* result) {
  const int64_t stride = int64_t{gridDim.x} * kReduceThreads * kVector;
  const int64_t first = (int64_t{blockIdx.x} * kReduceThreads + threadIdx.x) * kVector;
  for (int64_t i = first; i < elements; i += stride) {
    float sums[kVector] = {};
#pragma unroll 4
    for (int32_t s = 0; s < split; ++s) {
      float part[kVector];
      LoadVector<float>(partials + s * elements + i, part);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[k] += part[k];
    }
    StoreVector(result + i, sums, kVector, kVector > 1);
  }
}

}  // namespace jax_nm
