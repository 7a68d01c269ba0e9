// A warp of the kernel for sddmm in float32 by products in bfloat16: slots by 32 columns.
//
// The slots of a tile are the same in all of its steps: for each group of the warp a lane keeps
// which lines of a stage two of them pick, and the lanes exchange these.
//
// An operand of 16 rows is read 16 bytes at a time: rows 4 q to 4 q + 3 of a line are, for both
// operands, elements 2 q, 2 q + 1, 2 q + 8 and 2 q + 9 of the reduction of a product.
#pragma once

#include "short_stages.cuh"
#include "split_sums.cuh"
#include "tile_io.cuh"

namespace jax_nm {

template <int kSlots, int kGroupCols>
class SplitSddmmMultiplier {
 public:
  __device__ __forceinline__ SplitSddmmMultiplier(const ShortArgs& args, const ShortStages& stages,
                                                  int32_t warp)
      : args_(args), stages_(stages), lane_(threadIdx.x % 32), warp_(warp) {
    const int32_t col = ColOf(0, lane_ / 4);
    dy_ = args.layout.values_offset + (warp * kSplitWarpCols + col) * kHopperLineBytes +
          (lane_ % 4 ^ col % 8) * 16;
  }

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_.hopper, blockIdx.x, gridDim.x);
    for (int32_t i = 0; i < walk.Count(); ++i) {
      const HopperWork work = walk.Work(i);
      const HopperCoordinates at = args_.hopper.raster.Locate(work.tile);
      Decode(at);
      sums_.Clear();
      for (int32_t step = work.first_step; step < work.last_step; ++step) Step();
      sums_.Complete();
      if (work.shared) {
        sums_.AddOfCluster(args_.hopper, stages_.base + kShortAlignment, warp_, lane_);
      }
      Store(at, work.shared);
      if (work.shared) Sums::ReturnRing();
    }
  }

 private:
  static constexpr int kSlotTiles = kSlots / 16;
  using Sums = SplitSums<kSlotTiles, kGroupCols>;
  static constexpr int kGroups = Sums::kGroups;
  static constexpr int kGroupTiles = Sums::kGroupTiles;
  static constexpr int kColTiles = Sums::kColTiles;
  static constexpr int kHalves = kSplitSddmmRows / 16;
  static constexpr int kUnits = kSlotTiles * kGroups;  // operands of 16 slots, for all rows
  static_assert(kSlotTiles <= 4, "a lane of four keeps the lines of one slot tile");
  static_assert(kHalves == 2, "a line is two halves of 16 rows");

  using Rows = typename Sums::Rows;
  using Cols = typename Sums::Cols;
  using Unit = uint4[kHalves][2];  // 4 rows of both slots that the lane holds

  // The warp's column that is column `n` of tile `t`. Those of even and odd `n` lie 4 apart, so
  // that the lanes that read together find them in different banks.
  __device__ __forceinline__ static int32_t ColOf(int32_t t, int32_t n) {
    const int32_t group = t / kGroupTiles, k = t % kGroupTiles;
    const int32_t pair = kGroupTiles == 4   ? n / 2 * 8
                         : kGroupTiles == 2 ? n / 4 * 8 + n / 2 % 2 * 2
                                            : n / 2;
    return group * kGroupCols + n % 2 * 4 + pair + k;
  }

  // Where a slot's line begins, in 16 bytes, its swizzle included.
  __device__ __forceinline__ uint32_t LineOf(const uint8_t* indices, int32_t slot,
                                             int32_t first_window) const {
    const HopperArgs& a = args_.hopper;
    if (slot >= a.valid_kept) return 0;
    const int32_t index = min(static_cast<int32_t>(__ldg(indices + slot)), a.m - 1);
    const int32_t feature = min(a.by_n.Quotient(slot) * a.m + index, a.depth - 1);
    const uint32_t line = static_cast<uint32_t>(feature - first_window * a.m);
    return line * 8 | line % 8;
  }

  // Of the slot tile lane % 4: slots lane / 4 and, in the upper half, lane / 4 + 8.
  __device__ __forceinline__ void Decode(const HopperCoordinates& at) {
    const HopperArgs& a = args_.hopper;
    const int32_t first_slot = at.n_tile * kSlots;
    const int32_t first_window = a.by_n.Quotient(first_slot);
    const int32_t slot = first_slot + lane_ % 4 * 16 + lane_ / 4;
    const uint8_t* indices = a.indices + at.batch * a.indices_batch;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      lines_[g] = 0;
      if (lane_ % 4 >= kSlotTiles) continue;
      const int32_t col = at.col_tile * kSplitCols + warp_ * kSplitWarpCols + g * kGroupCols;
      const int32_t group = min(a.by_vector_length.Quotient(col), a.groups - 1);
      const uint8_t* own = indices + int64_t{group} * a.kept;
      lines_[g] = LineOf(own, slot, first_window) | LineOf(own, slot + 8, first_window) << 16;
    }
  }

  __device__ __forceinline__ void Step() {
    const int32_t stage = stages_.stage;
    TestDelay();
    ptx::BarrierWait(stages_.Full(stage), stages_.parity);
    if constexpr (kFreesEarly) Release(stage, 0);
    const uint32_t base = stages_.Base();
    Unit unit;
    LoadUnit(base, 0, unit);
    Cols cols[kHalves];
#pragma unroll
    for (int h = 0; h < kHalves; ++h) LoadCols(base, h, cols[h]);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int group = u % kGroups, tile = u / kGroups;
      typename Sums::Fresh fresh;
      Rows rows;
      SplitRows(unit[0], rows);
      sums_.template Multiply<true>(tile, group, rows, cols[0], fresh);
      SplitRows(unit[1], rows);
      if (u + 1 < kUnits) {
        LoadUnit(base, u + 1, unit);
      } else if (!kFreesEarly) {
        // What was read last of the stage has arrived when the address is known.
        Release(stage, unit[0][0].x | unit[0][1].x | unit[1][0].x | unit[1][1].x);
      }
      sums_.template Multiply<false>(tile, group, rows, cols[1], fresh);
      sums_.Add(tile, group, fresh);
    }
    stages_.Advance();
  }

  __device__ __forceinline__ void LoadCols(uint32_t base, int h, Cols& out) const {
#pragma unroll
    for (int t = 0; t < kColTiles; ++t) {
      const int group = t / kGroupTiles, k = t % kGroupTiles;
      const uint32_t address = base + dy_ + (group * kGroupCols + k) * kHopperLineBytes;
      const uint4 words = ptx::LoadShared16(address ^ k * 16 ^ h * 64);
      const SplitPair first(words.x, words.y), second(words.z, words.w);
#pragma unroll
      for (int p = 0; p < kSplitTerms; ++p) {
        out[p][t][0] = first.terms[p];
        out[p][t][1] = second.terms[p];
      }
    }
  }

  __device__ __forceinline__ void LoadUnit(uint32_t base, int u, Unit& out) const {
    const uint32_t lines =
        __shfl_sync(0xffffffffu, lines_[u % kGroups], (lane_ & ~3) | u / kGroups);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t line = (lines >> 16 * i & 0xffff) ^ lane_ % 4;
      const uint32_t address = base + line * 16;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) out[h][i] = ptx::LoadShared16(address ^ h * 64);
    }
  }

  __device__ __forceinline__ static void SplitRows(const uint4 (&x)[2], Rows& out) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const SplitPair first(x[i].x, x[i].y), second(x[i].z, x[i].w);
#pragma unroll
      for (int p = 0; p < kSplitTerms; ++p) {
        out[p][i] = first.terms[p];
        out[p][2 + i] = second.terms[p];
      }
    }
  }

  // The address waits for a word that was read, by a zero that only the run of the kernel knows.
  __device__ __forceinline__ void Release(int32_t stage, uint32_t last_read) const {
    const uint32_t zero = static_cast<uint32_t>(args_.hopper.rows) >> 31;
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(stages_.Empty(stage) + (last_read & zero));
  }

  // A lane has kGroupTiles neighbouring columns for each of two columns of a product.
  __device__ __forceinline__ void Store(const HopperCoordinates& at, bool shared) const {
    const HopperArgs& a = args_.hopper;
    const int32_t rank = Sums::Rank(a);
    const int32_t slot0 = at.n_tile * kSlots + lane_ / 4;
    const int32_t col0 = at.col_tile * kSplitCols + warp_ * kSplitWarpCols;
    const bool vector = a.cols % kGroupTiles == 0;
    float* values = static_cast<float*>(args_.result) + int64_t{at.batch} * a.kept * a.cols;
#pragma unroll
    for (int r = 0; r < kSlotTiles; ++r) {
      if (shared && !Sums::IsOf(a, r, rank)) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t slot = slot0 + r * 16 + half * 8;
        if (slot >= a.kept) continue;
        const bool padding = slot >= a.valid_kept;
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float line[kGroupTiles];
#pragma unroll
            for (int k = 0; k < kGroupTiles; ++k) {
              line[k] = padding ? 0.0f : sums_.high[r][g * kGroupTiles + k][half * 2 + e];
            }
            const int32_t col = col0 + ColOf(g * kGroupTiles, lane_ % 4 * 2 + e);
            StoreVector(values + int64_t{slot} * a.cols + col, line, a.cols - col, vector);
          }
        }
      }
    }
  }

  const ShortArgs& args_;
  ShortStages stages_;
  const int32_t lane_;
  const int32_t warp_;
  uint32_t dy_;  // from the start of a stage to what the lane reads
  uint32_t lines_[kGroups];
  Sums sums_;
};

}  // namespace jax_nm
