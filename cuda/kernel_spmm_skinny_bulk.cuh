// spmm in half precision on Hopper for at most 64 rows: y[r, c] = sum over kept slots j of
// x[r, source(g, j)] * values[j, c], g = c / L.
//
// With so few rows the product waits for memory, so the kernel is a stream of values, copied in
// bulk, through a deep ring. Other warps add to it what the slots pick from, feature by feature,
// and the rest multiply; these meet only when their sums are added up, in the order of the groups
// of warps and then of the blocks of a cluster or, through the workspace, of the split.
#pragma once

#include <cuda.h>

#include "skinny_bulk_copier.cuh"
#include "skinny_bulk_multiplier.cuh"
#include "skinny_reduction.cuh"

namespace jax_nm {

template <class T_, int kRows_, bool kSharedGroup_>
struct SkinnyBulkTraits {
  using T = T_;
  static constexpr int kRows = kRows_;
  using Tile = SkinnyTile<T, kRows>;
  using Copier = SkinnyCopier<T, kRows>;
  using Multiplier = SkinnyMultiplier<T, kRows, SkinnyGroupCols(kSharedGroup_, 2)>;
};

template <class Traits>
__global__ void __launch_bounds__(kSkinnyBulkMaxThreads)
    SpmmSkinnyBulkKernel(const __grid_constant__ KernelArgs args,
                         const __grid_constant__ CUtensorMap values_map) {
  using T = typename Traits::T;
  extern __shared__ unsigned char dynamic_shared[];
  const Config& config = args.config;
  const SkinnyBulkLayout layout = MakeSkinnyBulkLayout(config, args.m);
  unsigned char* shared =
      dynamic_shared + (-ptx::SharedAddress(dynamic_shared) & (kSkinnyAlignment - 1));
  const uint32_t address = ptx::SharedAddress(shared);
  const int32_t cluster = config.cluster;
  const int32_t rank = cluster > 1 ? static_cast<int32_t>(blockIdx.x) % cluster : 0;
  const int64_t block = cluster > 1 ? static_cast<int32_t>(blockIdx.x) / cluster : blockIdx.x;
  const TileCoordinates place =
      LocateTile(args.first_tile + block, args.outer_tiles, args.inner_tiles, config.split);
  const typename Traits::Tile tile(args, place);
  const StepRange range = StepsOf(place.split * cluster + rank, config.split * cluster, args.steps);

  const int32_t warp = threadIdx.x / 32;
  const int32_t multiply_warps = SkinnyMultiplyWarps(config);
  const int32_t teams = SkinnyTeams(config), team_warps = config.x_warps / teams;
  SkinnyStages stages{address + kSkinnyBarriersOffset, address + kSkinnyHeaderBytes,
                      layout.stage_bytes, config.stages};
  if (threadIdx.x == 0) {
    if (args.bulk_values) ptx::PrefetchTensorMap(&values_map);
    for (int32_t stage = 0; stage < config.stages; ++stage) {
      ptx::BarrierInit(stages.barriers + stage * 16, 33 * team_warps + args.bulk_values);
      ptx::BarrierInit(stages.barriers + stage * 16 + 8, multiply_warps);
    }
    ptx::FenceBarrierInit();
  }
  if (threadIdx.x < kSkinnyLineBytes / 4) reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = 0;
  __syncthreads();

  float* totals = reinterpret_cast<float*>(shared + kSkinnyHeaderBytes);
  if (warp < multiply_warps) {
    constexpr int32_t kWarpCols = kSkinnyBulkWarpCols;
    const int32_t group_warps = config.block_cols / kWarpCols;
    const int32_t group = warp / group_warps, warp_col = warp % group_warps * kWarpCols;
    typename Traits::Multiplier multiplier{tile,    args,     layout,
                                           address, warp_col, group * kSkinnySlots};
    multiplier.Run(range, stages);
    // The sums take the place of the ring once every multiplying warp is done with it.
    ptx::NamedBarrierSync(1, multiply_warps * 32);
    multiplier.Store(totals + group * layout.sums.floats + warp_col);
  } else if (warp < multiply_warps + config.x_warps) {
    const int32_t x_warp = warp - multiply_warps;
    const int32_t thread = x_warp % team_warps * 32 + static_cast<int32_t>(threadIdx.x) % 32;
    const typename Traits::Copier copier{tile,  args,   layout,         x_warp / team_warps,
                                         teams, thread, team_warps * 32};
    copier.Run(range, stages);
  } else if (args.bulk_values) {
    CopyValuesInBulk(tile, layout, &values_map, range, stages);
  }
  __syncthreads();
  SkinnyReduction<T>{args, layout.sums, place, totals, tile.rows}.Run(rank);
}

}  // namespace jax_nm
