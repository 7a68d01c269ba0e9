// A block of the kernels that pick from whole windows of x: its barriers and the roles of its
// warps.
#pragma once

#include "hopper_maps.h"
#include "short_producer.cuh"
#include "short_stages.cuh"

namespace jax_nm {

// Multiplier is that of one warp.
template <class Tile, class Multiplier, int kGroupCols>
__device__ __forceinline__ void RunShortBlock(const HopperMaps& maps, const ShortArgs& args) {
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
      CopyShortStages<Tile>(args, maps, stages);
    } else {
      DecodeShortIndices<Tile, kGroupCols>(args, stages, warp - 1);
    }
  } else {
    ptx::IncreaseRegisters<kMultiplierRegisters>();
    Multiplier(args, stages, warp - kProducers).Run();
  }
}

}  // namespace jax_nm
