// The warp that fills the ring of the kernel for sddmm in float32 by products in bfloat16.
#pragma once

#include "hopper_maps.h"
#include "short_producer.cuh"

namespace jax_nm {

// Fetches the windows that the slots of a tile lie in, and dy. By a whole warp, of which one lane
// issues.
template <int kSlots>
__device__ __forceinline__ void CopySplitSddmmStages(const ShortArgs& args, const HopperMaps& maps,
                                                     ShortStages stages) {
  const HopperArgs& a = args.hopper;
  const HopperWalk walk(a, blockIdx.x, gridDim.x);
  const bool issues = threadIdx.x % 32 == 0;
  for (int32_t i = 0; i < walk.Count(); ++i) {
    const HopperWork work = walk.Work(i);
    const HopperCoordinates at = a.raster.Locate(work.tile);
    const int32_t first_feature = a.by_n.Quotient(at.n_tile * kSlots) * a.m;
    for (int32_t step = work.first_step; step < work.last_step; ++step) {
      TestDelay();
      ptx::BarrierWait(stages.Empty(stages.stage), stages.parity ^ 1);
      if (issues) {
        const uint32_t full = stages.Full(stages.stage), base = stages.Base();
        const int32_t row = step * kSplitSddmmRows;
        ptx::BarrierArriveExpect(full, args.layout.table_offset);
        ptx::LoadBox(base + args.layout.values_offset, &maps.second, full, row,
                     at.col_tile * kSplitCols, at.batch);
        int32_t feature = first_feature;
        for (int32_t to = 0; to < args.layout.values_offset; to += args.layout.x_slab_bytes) {
          ptx::LoadBox(base + to, &maps.first, full, row, feature, at.batch);
          feature += args.features;
        }
      }
      __syncwarp();
      stages.Advance();
    }
    LendShortRing<SplitTile>(work);
  }
}

}  // namespace jax_nm
