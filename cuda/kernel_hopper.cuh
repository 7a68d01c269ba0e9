// spmm and sddmm for half precision on Hopper, with wgmma, where the gather costs next to no time
// of its own: y = activation(x W + bias), and dvalues = x^T dy at the kept slots. sddmm in TF32
// too: of dy the copies round to it, of x the tensor cores cut off what it does not hold.
//
//   producer   warpgroup 0: gathers the lines of x that slots name by 16-byte cp.async, fetches the
//              values, or dy, by TMA; both land in the layout that wgmma reads
//   consumers  warpgroups 1 and 2: multiply, each its own columns of the tile, and convert; what
//              they stage and store by TMA goes out while they multiply the next tile
//
// Blocks are persistent; HopperWalk says which tiles are whose. The ring of stages and its barriers
// run on across tiles. `full` of a stage completes when the producer warps of its team and the
// values have arrived, `empty` when the eight consumer warps have read it.
//
// Nothing that is not part of the product shows: lines beyond `rows` are zeros on both sides, and
// slots beyond `valid_kept` are in spmm; in sddmm, where they are results, they are cleared.
#pragma once

#include "hopper_consumer.cuh"
#include "hopper_maps.h"
#include "hopper_sddmm_producer.cuh"
#include "hopper_spmm_producer.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "wgmma and setmaxnreg exist in sm_90a alone: see cmake/CudaModule.cmake"
#endif

namespace jax_nm {

template <class T, class Out, class Tile>
__global__ void __launch_bounds__(kHopperThreads, 1)
    HopperKernel(const __grid_constant__ HopperMaps maps, const __grid_constant__ HopperArgs args) {
  static_assert(sizeof(T) == Tile::kElementBytes, "the tile is laid out for these operands");
  extern __shared__ unsigned char dynamic_shared[];
  const HopperShared<Tile> shared(dynamic_shared);
  if (threadIdx.x == 0) {
    ptx::PrefetchTensorMap(&maps.second);
    ptx::PrefetchTensorMap(&maps.result);
    for (int32_t stage = 0; stage < Tile::kStages; ++stage) {
      ptx::BarrierInit(shared.Full(stage), Tile::kTeamWarps + 1);
      ptx::BarrierInit(shared.Empty(stage), kHopperConsumers * kWarpgroupWarps);
    }
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  // The shuffle tells the compiler that a warp has one role, so that descriptors need no vector
  // registers.
  const int32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int32_t warpgroup = warp / kWarpgroupWarps;
  if (warpgroup == 0) {
    ptx::DecreaseRegisters<Tile::kProducerRegisters>();
    if constexpr (Tile::kOp == Op::kSpmm) {
      HopperSpmmProducer<Tile>(args, &maps.second, shared, warp).Run();
    } else {
      HopperSddmmProducer<Tile>(args, &maps.second, shared, warp).Run();
    }
  } else {
    ptx::IncreaseRegisters<Tile::kConsumerRegisters>();
    HopperConsumer<T, Out, Tile>(args, maps, shared, warpgroup - 1).Run();
  }
}

}  // namespace jax_nm
