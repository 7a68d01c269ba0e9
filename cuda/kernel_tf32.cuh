// spmm of float32 in TF32 on Hopper, with wgmma: y = activation(x W + bias).
//
//   producer   warpgroup 0: gathers the lines of x that slots name by 16-byte cp.async, fetches the
//              transposed values by TMA
//   consumers  warpgroups 1 and 2: read x, round it to TF32 and multiply it from registers
//
// Blocks are persistent, and the ring runs on across tiles. `full` of a stage completes when the
// copies of all producer threads and the values have arrived, `empty` when the eight consumer warps
// have read it. Nothing that is not part of the product shows, as in kernel_hopper.cuh.
#pragma once

#include "hopper_spmm_producer.cuh"
#include "tf32_consumer.cuh"

namespace jax_nm {

template <class Tile>
__global__ void __launch_bounds__(kHopperThreads, 1)
    Tf32Kernel(const __grid_constant__ HopperMaps maps, const __grid_constant__ Tf32Args args) {
  extern __shared__ unsigned char dynamic_shared[];
  const HopperShared<Tile> shared(dynamic_shared);
  if (threadIdx.x == 0) {
    ptx::PrefetchTensorMap(&maps.second);
    if (!args.hopper.result_feature_major) ptx::PrefetchTensorMap(&maps.result);
    for (int32_t stage = 0; stage < Tile::kStages; ++stage) {
      ptx::BarrierInit(shared.Full(stage), kWarpgroupThreads + 1);
      ptx::BarrierInit(shared.Empty(stage), kHopperConsumers * kWarpgroupWarps);
    }
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  const int32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int32_t warpgroup = warp / kWarpgroupWarps;
  if (warpgroup == 0) {
    ptx::DecreaseRegisters<Tile::kProducerRegisters>();
    HopperSpmmProducer<Tile>(args.hopper, &maps.second, shared, warp).Run();
  } else {
    ptx::IncreaseRegisters<Tile::kConsumerRegisters>();
    Tf32Consumer<Tile>(args, maps, shared, warpgroup - 1).Run();
  }
}

}  // namespace jax_nm
