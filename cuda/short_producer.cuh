// The warps that fill the ring of the kernel for short vectors.
#pragma once

#include "hopper_maps.h"
#include "hopper_walk.cuh"
#include "short_stages.cuh"

namespace jax_nm {

// Leaves the ring to the warps that multiply until the blocks of the cluster have added up the sums
// of the tile that they share.
template <class Tile>
__device__ __forceinline__ void LendShortRing(const HopperWork& work) {
  if constexpr (Tile::kShares) {
    if (work.shared) {
      ptx::ClusterSync();
      ptx::ClusterSync();
    }
  }
}

// Fetches x and the values by TMA. By a whole warp, of which one lane issues.
template <class Tile>
__device__ __forceinline__ void CopyShortStages(const ShortArgs& args, const HopperMaps& maps,
                                                ShortStages stages) {
  const HopperWalk walk(args.hopper, blockIdx.x, gridDim.x);
  const bool issues = threadIdx.x % 32 == 0;
  const int32_t bytes =
      (Tile::kRowSlabs * args.features + Tile::kColSlabs * args.slots) * kHopperLineBytes;
  for (int32_t i = 0; i < walk.Count(); ++i) {
    const HopperWork work = walk.Work(i);
    const HopperCoordinates at = args.hopper.raster.Locate(work.tile);
    for (int32_t step = work.first_step; step < work.last_step; ++step) {
      TestDelay();
      ptx::BarrierWait(stages.Empty(stages.stage), stages.parity ^ 1);
      if (issues) {
        const uint32_t full = stages.Full(stages.stage), base = stages.Base();
        ptx::BarrierArriveExpect(full, bytes);
#pragma unroll
        for (int32_t slab = 0; slab < Tile::kRowSlabs; ++slab) {
          ptx::LoadBox(base + slab * args.layout.x_slab_bytes, &maps.first, full,
                       at.n_tile * Tile::kRows + slab * Tile::kLineElements, step * args.features,
                       at.batch);
        }
#pragma unroll
        for (int32_t slab = 0; slab < Tile::kColSlabs; ++slab) {
          ptx::LoadBox(base + args.layout.values_offset + slab * args.layout.values_slab_bytes,
                       &maps.second, full, at.col_tile * Tile::kCols + slab * Tile::kLineElements,
                       step * args.slots, at.batch);
        }
      }
      __syncwarp();
      stages.Advance();
    }
    LendShortRing<Tile>(work);
  }
}

// Decodes the indices of every step whose turn it is, for which the lines of x that its slots pick
// are numbered in the stage. A slot of padding picks the last feature of its window, which lies
// behind the depth: TMA fills it with zeros.
template <class Tile, int kGroupCols>
__device__ __forceinline__ void DecodeShortIndices(const ShortArgs& args, ShortStages stages,
                                                   int32_t decoder) {
  constexpr int32_t kTableRows = Tile::kCols / kGroupCols;
  constexpr int32_t kWords = kShortDepth / 4;
  const HopperArgs& a = args.hopper;
  const HopperWalk walk(a, blockIdx.x, gridDim.x);
  const int32_t lane = threadIdx.x % 32, word = lane % kWords;
  // Not more decoders than stages: see kShortMinStages.
  const int32_t decoders =
      Tile::kMinStages < kShortDecoders ? min(kShortDecoders, args.stages) : kShortDecoders;
  int32_t turn = decoder < decoders ? decoder : INT32_MAX;
  for (int32_t i = 0; i < walk.Count(); ++i) {
    const HopperWork work = walk.Work(i);
    const HopperCoordinates at = a.raster.Locate(work.tile);
    const uint8_t* indices = a.indices + at.batch * a.indices_batch;
    for (int32_t step = work.first_step; step < work.last_step; ++step) {
      if (turn-- == 0) {
        turn = decoders - 1;
        TestDelay();
        ptx::BarrierWait(stages.Empty(stages.stage), stages.parity ^ 1);
        const uint32_t table = stages.Base() + args.layout.table_offset;
        for (int32_t row = lane / kWords; row < kTableRows; row += 32 / kWords) {
          const int32_t col = at.col_tile * Tile::kCols + row * kGroupCols;
          const int32_t group = min(a.by_vector_length.Quotient(col), a.groups - 1);
          const uint8_t* own = indices + int64_t{group} * a.kept;
#pragma unroll 2
          for (int32_t k = 0; k < args.slots; k += kShortDepth) {
            const int32_t slot = step * args.slots + k + 2 * word;
            const uint32_t packed = ShortLine(args, own, step, slot) |
                                    ShortLine(args, own, step, slot + 1) << 8 |
                                    ShortLine(args, own, step, slot + 8) << 16 |
                                    ShortLine(args, own, step, slot + 9) << 24;
            ptx::StoreShared4(table + k * kTableRows + (row * kWords + word) * 4,
                              static_cast<int32_t>(packed));
          }
        }
        __syncwarp();
        if (lane == 0) ptx::BarrierArrive(stages.Full(stages.stage));
      }
      stages.Advance();
    }
    LendShortRing<Tile>(work);
  }
}

}  // namespace jax_nm
