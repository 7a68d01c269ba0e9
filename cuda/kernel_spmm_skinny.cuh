// spmm for at most 64 rows of a row-major x: y[r, c] = sum over kept slots j of
// x[r, source(g, j)] * values[j, c], g = c / L.
//
// With so few rows the product waits for memory, so the kernel is a stream of values through deep
// rings: each group of warps runs ahead by itself with asynchronous copies and meets the others
// only when the sums of its slots are added up, in the order of the groups and then of the blocks
// of a cluster or, through the workspace, of the split.
#pragma once

#include <type_traits>

#include "skinny_reduction.cuh"
#include "skinny_ring.cuh"
#include "skinny_sums.cuh"
#include "test_delay.cuh"

namespace jax_nm {

// Waits until the oldest of the `stages - 1` groups of copies in flight has arrived.
__device__ __forceinline__ void WaitForStage(int32_t stages) {
  static_assert(kSkinnyMaxStages == 8, "WaitForStage must know every number of stages");
  switch (stages) {
    case 2:
      return ptx::WaitGroup<0>();
    case 3:
      return ptx::WaitGroup<1>();
    case 4:
      return ptx::WaitGroup<2>();
    case 5:
      return ptx::WaitGroup<3>();
    case 6:
      return ptx::WaitGroup<4>();
    case 7:
      return ptx::WaitGroup<5>();
    default:
      return ptx::WaitGroup<6>();
  }
}

template <class T_, int kRows_, bool kSharedGroup_>
struct SkinnyTraits {
  using T = T_;
  static constexpr int kRows = kRows_;
  static constexpr int kWarpCols = SkinnyWarpCols(kRows, sizeof(T));
  static constexpr int kMaxThreads = SkinnyMaxThreads(kRows, sizeof(T));
  using Ring = SkinnyRing<T, kWarpCols>;
  using Sums =
      std::conditional_t<sizeof(T) == 4, SkinnyVectorSums<kRows, 64>,
                         SkinnyTensorSums<T, kRows, kWarpCols, SkinnyGroupCols(kSharedGroup_, 2)>>;
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kMaxThreads)
    SpmmSkinnyKernel(const __grid_constant__ KernelArgs args) {
  using T = typename Traits::T;
  extern __shared__ __align__(16) unsigned char shared[];
  const Config& config = args.config;
  const SkinnyLayout layout = MakeSkinnyLayout(config, args.m, sizeof(T));
  const int32_t cluster = config.cluster;
  const int32_t rank = cluster > 1 ? static_cast<int32_t>(blockIdx.x) % cluster : 0;
  const int64_t block = cluster > 1 ? static_cast<int32_t>(blockIdx.x) / cluster : blockIdx.x;
  const TileCoordinates tile =
      LocateTile(args.first_tile + block, args.outer_tiles, args.inner_tiles, config.split);
  const typename Traits::Ring ring(args, layout, tile);
  const StepRange range = StepsOf(tile.split * cluster + rank, config.split * cluster, args.steps);

  const int32_t group_warps = config.threads / 32 / config.kept_warps;
  const int32_t warp = threadIdx.x / 32, group = warp / group_warps;
  const int32_t warp_col = warp % group_warps * Traits::kWarpCols;
  const auto sync_group = [&] {
    if (group_warps == 1) {
      __syncwarp();
    } else {
      ptx::NamedBarrierSync(1 + group, ring.threads);
    }
  };

  typename Traits::Sums sums;
  unsigned char* stages = shared + group * layout.ring_bytes;
  const int32_t groups = config.kept_warps;
  const int32_t first = range.first + group;
  int32_t issued = first;
  for (int32_t stage = 0; stage < config.stages - 1; ++stage, issued += groups) {
    if (issued < range.last) ring.Issue(issued, stages + stage * layout.stage_bytes);
    ptx::CommitGroup();
  }
  int32_t read_stage = 0, write_stage = config.stages - 1;
  for (int32_t step = first; step < range.last; step += groups, issued += groups) {
    WaitForStage(config.stages);
    TestDelay();
    // Behind this every warp sees the stage's copies, and none reads the stage before it any more.
    if (!kFreesEarly) sync_group();
    if (issued < range.last) ring.Issue(issued, stages + write_stage * layout.stage_bytes);
    ptx::CommitGroup();
    const SkinnyStep data{stages + read_stage * layout.stage_bytes, step * config.block_kept,
                          ring.FirstFeature(step)};
    sums.Add(args, layout, data, ring.col0, ring.first_group, warp_col);
    read_stage = read_stage + 1 == config.stages ? 0 : read_stage + 1;
    write_stage = write_stage + 1 == config.stages ? 0 : write_stage + 1;
  }
  ptx::WaitGroup<0>();
  __syncthreads();
  float* totals = reinterpret_cast<float*>(shared);
  sums.Store(totals + group * layout.sums.floats + warp_col, layout.sums.pitch);
  __syncthreads();
  SkinnyReduction<T>{args, layout.sums, tile, totals, ring.rows}.Run(rank);
}

}  // namespace jax_nm
