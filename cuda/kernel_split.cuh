// spmm in float32 on Hopper by six products in bfloat16, for vectors whose length is a multiple of
// 8: y = activation(x W + bias).
//
//   producers    warpgroup 0: one warp fetches the windows of x and the values by TMA, the others
//                decode the indices
//   multipliers  warpgroups 1 and 2: each warp has 32 columns, in 1, 2 or 4 groups, and splits what
//                it reads on the way to its registers
//
// The blocks and their ring are those of the kernel for short vectors.
#pragma once

#include "short_block.cuh"
#include "split_multiplier.cuh"

namespace jax_nm {

template <int kGroupCols>
__global__ void __launch_bounds__(kHopperThreads, 1)
    SplitKernel(const __grid_constant__ HopperMaps maps, const __grid_constant__ ShortArgs args) {
  RunShortBlock<SplitTile, SplitMultiplier<kGroupCols>, kGroupCols>(maps, args);
}

}  // namespace jax_nm
