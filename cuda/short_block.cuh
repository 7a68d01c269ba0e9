// A block of the kernels that pick from whole windows of x: its barriers and the roles of its
// warps.
#pragma once

#include "hopper_maps.h"
#include "short_producer.cuh"
#include "short_stages.cuh"

namespace jax_nm {

// A stage is full after kArrivals and its copies. `produce` and `multiply` are called by a warp
// with the ring and its number among those of its role.
template <int kArrivals, class Produce, class Multiply>
__device__ __forceinline__ void RunRoles(const HopperMaps& maps, const ShortArgs& args,
                                         Produce produce, Multiply multiply) {
  constexpr int kProducerRegisters = 40, kMultiplierRegisters = 232;
  constexpr int kProducers = kHopperThreads / 32 - kShortWarps;
  extern __shared__ unsigned char dynamic_shared[];
  const ShortStages stages(dynamic_shared, args);
  if (threadIdx.x == 0) {
    ptx::PrefetchTensorMap(&maps.first);
    ptx::PrefetchTensorMap(&maps.second);
    for (int32_t stage = 0; stage < args.stages; ++stage) {
      ptx::BarrierInit(stages.Full(stage), kArrivals);
      ptx::BarrierInit(stages.Empty(stage), kShortWarps);
    }
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  const int32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  if (warp < kProducers) {
    ptx::DecreaseRegisters<kProducerRegisters>();
    produce(stages, warp);
  } else {
    ptx::IncreaseRegisters<kMultiplierRegisters>();
    multiply(stages, warp - kProducers);
  }
}

// Multiplier is that of one warp.
template <class Tile, class Multiplier, int kGroupCols>
__device__ __forceinline__ void RunShortBlock(const HopperMaps& maps, const ShortArgs& args) {
  static_assert(kHopperThreads / 32 == kShortWarps + kShortDecoders + 1, "every warp has a role");
  RunRoles<2>(
      maps, args,
      [&](const ShortStages& stages, int32_t warp) {
        if (warp == 0) {
          CopyShortStages<Tile>(args, maps, stages);
        } else {
          DecodeShortIndices<Tile, kGroupCols>(args, stages, warp - 1);
        }
      },
      [&](const ShortStages& stages, int32_t warp) { Multiplier(args, stages, warp).Run(); });
}

}  // namespace jax_nm
