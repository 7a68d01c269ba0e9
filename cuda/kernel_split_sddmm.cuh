// sddmm in float32 on Hopper by six products in bfloat16, for vectors whose length is a multiple of
// 8:  dvalues[j, c] = sum over rows r of  x[r, source(g, j)] * dy[r, c].
//
//   producer     a warp of warpgroup 0, which fetches the windows of x and dy by TMA
//   multipliers  warpgroups 1 and 2: each warp has 32 columns, in 1, 2 or 4 groups, and all slots
//                of the tile, and splits what it reads on the way to its registers
#pragma once

#include "short_block.cuh"
#include "split_sddmm_multiplier.cuh"
#include "split_sddmm_producer.cuh"

namespace jax_nm {

template <int kSlots, int kGroupCols>
__global__ void __launch_bounds__(kHopperThreads, 1)
    SplitSddmmKernel(const __grid_constant__ HopperMaps maps,
                     const __grid_constant__ ShortArgs args) {
  RunRoles<1>(
      maps, args,
      [&](const ShortStages& stages, int32_t warp) {
        if (warp == 0) CopySplitSddmmStages<kSlots>(args, maps, stages);
      },
      [&](const ShortStages& stages, int32_t warp) {
        SplitSddmmMultiplier<kSlots, kGroupCols>(args, stages, warp).Run();
      });
}

}  // namespace jax_nm
