// spmm in half precision on Hopper for short vectors, whose length is a multiple of 8:
// y = activation(x W + bias).
//
//   producers    warpgroup 0: one warp fetches the windows of x and the values by TMA, the others
//                decode the indices
//   multipliers  warpgroups 1 and 2: each warp has 32 columns, in 1, 2 or 4 groups
//
// Blocks are persistent, and the ring runs on across tiles. `full` of a stage completes when both
// producers have filled their parts, `empty` when the eight warps have read it.
#pragma once

#include "short_multiplier.cuh"
#include "short_producer.cuh"

namespace jax_nm {

template <class T, class Out, int kGroupCols>
__global__ void __launch_bounds__(kHopperThreads, 1)
    ShortKernel(const __grid_constant__ HopperMaps maps, const __grid_constant__ ShortArgs args) {
  static_assert(sizeof(T) == 2, "operands are half precision");
  constexpr int kProducerRegisters = 40, kMultiplierRegisters = 232;
  constexpr int kProducers = kHopperThreads / 32 - kShortWarps;
  static_assert(kProducers == kShortDecoders + 1, "every warp has a role");
  extern __shared__ unsigned char dynamic_shared[];
  const ShortStages stages(dynamic_shared, args);
  if (threadIdx.x == 0) {
    ptx::PrefetchTensorMap(&maps.first);
    ptx::PrefetchTensorMap(&maps.second);
    for (int32_t stage = 0; stage < args.stages; ++stage) {
      ptx::BarrierInit(stages.Full(stage), 2);
      ptx::BarrierInit(stages.Empty(stage), kShortWarps);
    }
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  const int32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  if (warp < kProducers) {
    ptx::DecreaseRegisters<kProducerRegisters>();
    if (warp == 0) {
      CopyShortStages(args, maps, stages);
    } else {
      DecodeShortIndices<kGroupCols>(args, stages, warp - 1);
    }
  } else {
    ptx::IncreaseRegisters<kMultiplierRegisters>();
    ShortMultiplier<T, Out, kGroupCols>(args, stages, warp - kProducers).Run();
  }
}

}  // namespace jax_nm
