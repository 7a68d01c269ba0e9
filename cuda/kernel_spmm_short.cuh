// spmm for short vectors in half precision on Hopper, with mma.sync:
//
//   y[r, c] = sum over kept slots j of  x[r, source(g, j)] * values[j, c],   g = c / L.
//
// Where a group has 32 columns or fewer, a gathered row of x in shared memory serves one product
// only. So the windows of x come whole, by TMA, which reads each row once for all groups of the
// block, and each warp gathers the rows of its groups on their way to its registers.
//
//   producer   warpgroup 0: a warp fetches the windows of x and the values, three decode indices
//   consumers  eight warps multiply, each all rows of the tile by its own columns, and store
//
// Blocks are persistent, one on a multiprocessor; HopperWalk says which tiles are whose, and the
// ring of stages runs on across tiles. `full` of a stage completes when the copies and the table of
// its slots are there, `empty` when the eight warps have read it.
//
// Nothing that is not part of the product shows: rows, columns and slots beyond the end are zeros,
// and slots that hold nothing read zeros of x, so that what is not finite reaches its readers only.
#pragma once

#include "short_consumer.cuh"
#include "short_producer.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "setmaxnreg exists in sm_90a alone: see cmake/CudaModule.cmake"
#endif

namespace jax_nm {

template <class T, class Out, class Tile, int kGroupCols>
__global__ void __launch_bounds__(kHopperThreads, 1)
    ShortKernel(const __grid_constant__ HopperMaps maps, const __grid_constant__ ShortArgs args) {
  static_assert(sizeof(T) == 2, "operands are half precision");
  extern __shared__ unsigned char dynamic_shared[];
  const ShortShared shared(dynamic_shared, args);
  if (threadIdx.x == 0) {
    ptx::PrefetchTensorMap(&maps.first);
    ptx::PrefetchTensorMap(&maps.second);
    for (int32_t stage = 0; stage < args.stages; ++stage) {
      ptx::BarrierInit(shared.Full(stage), 2);
      ptx::BarrierInit(shared.Empty(stage), kShortWarps);
    }
    ptx::FenceBarrierInit();
  }
  if (args.layout.HasPadding()) {
    // Some lines are never copied to.
    for (int32_t i = threadIdx.x * 16; i < args.layout.table_offset; i += kHopperThreads * 16) {
      ptx::StoreShared(shared.base + i, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
    ptx::FenceProxyAsync();
  }
  __syncthreads();
  // The shuffle tells the compiler that a warp has one role.
  const int32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  if (warp <= kShortDecoders) {
    ptx::DecreaseRegisters<Tile::kProducerRegisters>();
    const ShortProducer<Tile> producer(args, maps, shared);
    if (warp == 0) {
      producer.Fetch();
    } else {
      producer.Decode(warp - 1);
    }
  } else {
    ptx::IncreaseRegisters<Tile::kConsumerRegisters>();
    ShortConsumer<T, Out, Tile, kGroupCols>(args, shared, warp - kShortDecoders - 1).Run();
  }
}

}  // namespace jax_nm
