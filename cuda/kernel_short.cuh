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

#include "short_block.cuh"
#include "short_multiplier.cuh"

namespace jax_nm {

template <class T, class Out, int kGroupCols>
__global__ void __launch_bounds__(kHopperThreads, 1)
    ShortKernel(const __grid_constant__ HopperMaps maps, const __grid_constant__ ShortArgs args) {
  static_assert(sizeof(T) == 2, "operands are half precision");
  RunShortBlock<ShortTile, ShortMultiplier<T, Out, kGroupCols>, kGroupCols>(maps, args);
}

}  // namespace jax_nm
