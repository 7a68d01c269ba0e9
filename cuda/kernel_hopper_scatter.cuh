// spmm_t for half precision on Hopper: the sums of dx stay in registers while a block walks over
// the columns, and tensor cores scatter each group's partial sums to the features that its slots
// hold.
//
//   producer   warpgroup 0: a warp fetches dy and the values by TMA, two build one-hot matrices
//   consumers  warpgroups 1 and 2: multiply, scatter and store, each 64 rows of the tile
//
// A partial sum of a group becomes one part or two in bfloat16. Slots beyond `valid_kept` and
// columns beyond `cols` are zeros on both sides. What is not finite is multiplied by the zeros of
// the one-hots too: a NaN of dy reaches all features of its row, one of the values, or a partial
// sum that overflows bfloat16, the features of its block, and of the one before if they are not
// full.
#pragma once

#include "hopper_scatter_consumer.cuh"
#include "hopper_scatter_producer.cuh"

namespace jax_nm {

template <class T, class Out, class Tile>
__global__ void __launch_bounds__(kHopperThreads, 1)
    HopperScatterKernel(const __grid_constant__ HopperMaps maps,
                        const __grid_constant__ HopperArgs args) {
  static_assert(sizeof(T) == 2, "operands are half precision");
  extern __shared__ unsigned char dynamic_shared[];
  const HopperShared<Tile> shared(dynamic_shared);
  if (threadIdx.x == 0) {
    ptx::PrefetchTensorMap(&maps.first);
    ptx::PrefetchTensorMap(&maps.second);
    ptx::PrefetchTensorMap(&maps.result);
    for (int32_t stage = 0; stage < Tile::kStages; ++stage) {
      ptx::BarrierInit(shared.Full(stage), 1);
      ptx::BarrierInit(shared.Empty(stage), kHopperConsumers * kWarpgroupWarps);
    }
    for (int32_t buffer = 0; buffer < Tile::kOneHots; ++buffer) {
      ptx::BarrierInit(shared.OneHotFull(buffer), 1);
      ptx::BarrierInit(shared.OneHotEmpty(buffer), kHopperConsumers * kWarpgroupWarps);
    }
    ptx::FenceBarrierInit();
  }
  constexpr int32_t kVectors = Tile::kOneHots * Tile::kOneHotBytes / 16;
  for (int32_t i = threadIdx.x; i < kVectors; i += kHopperThreads) {
    ptx::StoreShared(shared.OneHot(0) + i * 16, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
  }
  ptx::FenceProxyAsync();
  __syncthreads();
  // As in HopperKernel.
  const int32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const int32_t warpgroup = warp / kWarpgroupWarps;
  if (warpgroup == 0) {
    ptx::DecreaseRegisters<Tile::kProducerRegisters>();
    const HopperScatterProducer<Tile> producer(args, maps, shared);
    if (warp == 0) {
      producer.Fetch();
    } else if (warp <= Tile::kOneHots) {
      producer.Mark(warp - 1);
    }
  } else {
    ptx::IncreaseRegisters<Tile::kConsumerRegisters>();
    HopperScatterConsumer<T, Out, Tile>(args, maps, shared, warpgroup - 1).Run();
  }
}

}  // namespace jax_nm
