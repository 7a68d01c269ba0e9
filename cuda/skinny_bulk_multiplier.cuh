// The sums of one multiplying warp of a skinny kernel whose values come in bulk: its rows of x
// times 32 columns.
#pragma once

#include <cstdint>

#include "ptx.cuh"
#include "ptx_mma.cuh"
#include "skinny_bulk_stages.cuh"
#include "test_delay.cuh"

namespace jax_nm {

// mma with 16 columns of the weight as its first operand and 8 rows of x as the second. x lies
// feature-major, so ldmatrix gathers: each lane points to the feature of one of 16 slots.
template <class T, int kRows, int kGroupCols>
struct SkinnyMultiplier {
  static constexpr int kRowTiles = kRows / 8;
  static constexpr int kWarpCols = kSkinnyBulkWarpCols;
  static constexpr int kParts = kWarpCols / kGroupCols;
  static constexpr int kPartTiles = kGroupCols / 16;
  static_assert(kWarpCols % kGroupCols == 0 && kGroupCols % 16 == 0,
                "the columns of a part must be whole tiles of mma");

  const SkinnyTile<T, kRows>& tile;
  const KernelArgs& args;
  const SkinnyBulkLayout& layout;
  uint32_t zeros;      // a line of them
  int32_t warp_col;    // in the tile
  int32_t first_kept;  // in a stage, of this warp's slots

  float sums[kParts][kPartTiles][kRowTiles][4] = {};

  __device__ __forceinline__ void Run(const StepRange& range, SkinnyStages stages) {
    for (int32_t step = range.first; step < range.last; ++step, stages.Advance()) {
      TestDelay();
      stages.WaitFull();
      if (kFreesEarly) Free(stages);
      TestDelay();
      Add(step, stages.Address());
      if (!kFreesEarly) Free(stages);
    }
  }

  __device__ __forceinline__ static void Free(const SkinnyStages& stages) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::BarrierArrive(stages.Empty());
  }

  __device__ __forceinline__ void Add(int32_t step, uint32_t stage) {
    const int32_t lane = threadIdx.x % 32;
    const int32_t value_slot = lane / 16 * 8 + lane % 8;
    const int32_t value_vector = warp_col / 8 % 8 + lane / 8 % 2;
    const uint32_t values = stage + warp_col / kSkinnySlabCols * layout.slab_bytes +
                            value_slot * kSkinnyLineBytes + (value_vector ^ lane % 8) * 16;
    const uint32_t lines = stage + layout.x_offset;
    const int32_t first_slot = step * args.config.block_kept + lane % 16;
    const int32_t first_feature = tile.FirstFeature(step);
    const int32_t last_feature = args.depth - 1 - first_feature;
    const int32_t kept_stride = args.config.kept_warps * kSkinnySlots;
    const bool whole = (step + 1) * args.config.block_kept <= args.valid_kept;
    uint32_t indices[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int32_t column = tile.col0 + warp_col + part * kGroupCols;
      indices[part] =
          stage + layout.indices_offset + lane % 16 +
          (args.by_vector_length.Quotient(column) - tile.first_group) * args.config.block_kept;
    }
#pragma unroll(kRows <= 16 ? 2 : 1)
    for (int32_t k = first_kept; k < args.config.block_kept; k += kept_stride) {
      const int32_t window = args.by_n.Quotient(first_slot + k) * args.m - first_feature;
      const bool valid = whole || first_slot + k < args.valid_kept;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int32_t offset = min(ptx::LoadShared1(indices[part] + k), args.m - 1);
        const int32_t feature = min(window + offset, last_feature);  // one instruction
        // The values of padding slots are staged as zeros; what they would read must not count
        // either, because it may be infinite.
        const uint32_t line =
            valid ? lines + SkinnyPlace<kRows>(feature, kRows == 8 ? 0 : lane / 16) : zeros;
        uint32_t x[kRowTiles][2];
        Gather(line, x);
#pragma unroll
        for (int tile16 = 0; tile16 < kPartTiles; ++tile16) {
          uint32_t weights[4];
          ptx::LoadMatricesTransposed(
              weights, (values + k * kSkinnyLineBytes) ^ (part * kPartTiles + tile16) * 32);
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            ptx::Mma16816<T>(sums[part][tile16][t], weights, x[t]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ static void Gather(uint32_t line, uint32_t (&x)[kRowTiles][2]) {
    if constexpr (kRowTiles == 1) {
      ptx::LoadMatricesTransposed(x[0], line);
    } else {
#pragma unroll
      for (int t = 0; t < kRowTiles; t += 2) {
        uint32_t two[4];
        ptx::LoadMatricesTransposed(two, line ^ t * 16);
        x[t][0] = two[0];
        x[t][1] = two[1];
        x[t + 1][0] = two[2];
        x[t + 1][1] = two[3];
      }
    }
  }

  // To rows of floats, from the warp's first column on.
  __device__ __forceinline__ void Store(float* to) const {
    const int32_t pitch = layout.sums.pitch;
    const int32_t lane = threadIdx.x % 32, p = lane / 4, q = lane % 4;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int tile16 = 0; tile16 < kPartTiles; ++tile16) {
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            to[(t * 8 + 2 * q + i % 2) * pitch + part * kGroupCols + tile16 * 16 + i / 2 * 8 + p] =
                sums[part][tile16][t][i];
          }
        }
      }
    }
  }
};

}  // namespace jax_nm
