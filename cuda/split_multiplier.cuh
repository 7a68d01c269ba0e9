// A warp of the kernel for float32 by products in bfloat16: 64 rows by 32 columns.
//
// With x = x0 + x1 + x2 and v = v0 + v1 + v2, of which every term has 8 bits less to say than the
// one before,
//
//   x v = x0 v0 + (x0 v1 + x1 v0) + (x0 v2 + x1 v1 + x2 v0)
//
// up to 2^-22 of it. Tensor cores cut off what they add to long sums, so the x0 v0 of 16 slots are
// summed afresh and then added in float32. The others are 2^-7 of them or less, and so is what is
// cut off: they have sums of their own for the whole reduction. Where x or v is infinite these are
// NaN, and made finite before they are added, so that the x0 v0 decide.
//
// A lane reads, of each of the four slots that it holds of an operand, 4 rows of x at once, and
// pairs the slots: rows 2 h and 2 h + 1 of them are its two rows of a product. Of the values it
// reads as many neighbouring columns as its group has tiles, one for each.
#pragma once

#include "activation.cuh"
#include "hopper_walk.cuh"
#include "ptx_cluster.cuh"
#include "ptx_hopper.cuh"
#include "ptx_mma.cuh"
#include "short_stages.cuh"
#include "split_config.h"
#include "split_numbers.cuh"
#include "tile_io.cuh"

namespace jax_nm {

template <int kGroupCols>
class SplitMultiplier {
 public:
  __device__ __forceinline__ SplitMultiplier(const ShortArgs& args, const ShortStages& stages,
                                             int32_t warp)
      : args_(args), stages_(stages), lane_(threadIdx.x % 32), warp_(warp) {
    const uint32_t line = lane_ % 4 * 2, byte = lane_ / 4 * kGroupTiles * 4;
    values_ = args.layout.values_offset + warp * args.layout.values_slab_bytes +
              line * kHopperLineBytes + (byte ^ line * 16);
    table_ = args.layout.table_offset + (warp * kGroups * 4 + lane_ % 4) * 4;
  }

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_.hopper, blockIdx.x, gridDim.x);
    for (int32_t i = 0; i < walk.Count(); ++i) {
      const HopperWork work = walk.Work(i);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) high_[r][t][e] = low_[r][t][e] = 0.0f;
        }
      }
      for (int32_t step = work.first_step; step < work.last_step; ++step) Step();
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) high_[r][t][e] += Clamp(low_[r][t][e]);
        }
      }
      if (work.shared) AddSums();
      Store(args_.hopper.raster.Locate(work.tile), work.shared);
      if (work.shared) ReturnRing();
    }
  }

 private:
  static constexpr int kGroups = kSplitWarpCols / kGroupCols;
  static constexpr int kGroupTiles = kGroupCols / 8;
  static constexpr int kColTiles = kSplitWarpCols / 8;
  static constexpr int kRowTiles = kSplitRows / 16;
  static constexpr int kSlabTiles = kRowTiles / SplitTile::kRowSlabs;
  static constexpr int kUnits = kGroups * SplitTile::kRowSlabs;  // reads of x for 16 slots
  static_assert(kSlabTiles == 2, "a lane's four rows are those of two products");

  using Unit = uint4[4];                             // 4 rows of each slot that the lane holds
  using Rows = uint32_t[kSplitTerms][4];             // the terms of an operand of 16 rows
  using Cols = uint32_t[kSplitTerms][kColTiles][2];  // and of one of the warp's columns

  __device__ __forceinline__ void Step() {
    const int32_t stage = stages_.stage;
    TestDelay();
    ptx::BarrierWait(stages_.Full(stage), stages_.parity);
    if constexpr (kFreesEarly) Release(stage, 0);
    const uint32_t base = stages_.Base();
    for (int32_t slot = 0; slot < args_.slots; slot += kShortDepth) {
      Multiply(base, slot, stage, slot + kShortDepth == args_.slots);
    }
    stages_.Advance();
  }

  // 16 slots.
  __device__ __forceinline__ void Multiply(uint32_t base, int32_t slot, int32_t stage, bool last) {
    constexpr int32_t kTableRows = kSplitCols / kGroupCols;
    uint32_t lines[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      lines[g] = ptx::LoadShared4(base + table_ + slot * kTableRows + g * 16);
    }
    Cols cols;
    Unit unit;
    LoadCols(base + values_ + slot * kHopperLineBytes, cols);
    LoadUnit(base, lines[0], unit);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int group = u / SplitTile::kRowSlabs, slab = u % SplitTile::kRowSlabs;
      Rows rows[kSlabTiles];
#pragma unroll
      for (int h = 0; h < kSlabTiles; ++h) SplitRows(unit, h, rows[h]);
      if (u + 1 < kUnits) {
        const int ahead = (u + 1) % SplitTile::kRowSlabs;
        LoadUnit(base + ahead * args_.layout.x_slab_bytes, lines[(u + 1) / SplitTile::kRowSlabs],
                 unit);
      } else if (last && !kFreesEarly) {
        // What was read last of the stage has arrived when the address is known.
        Release(stage, unit[0].x | unit[1].x | unit[2].x | unit[3].x);
      }
#pragma unroll
      for (int h = 0; h < kSlabTiles; ++h) Products(slab * kSlabTiles + h, group, rows[h], cols);
    }
  }

  __device__ __forceinline__ void LoadCols(uint32_t address, Cols& out) const {
    int32_t words[4][kGroups][kGroupTiles];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Slots 2 q, 2 q + 1, 2 q + 8 and 2 q + 9.
      const uint32_t line = (i % 2 * 1 + i / 2 * 8) * kHopperLineBytes;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        ptx::LoadShared((address ^ g * kGroupCols * 4 ^ i % 2 * 16) + line, words[i][g]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int t = 0; t < kColTiles; ++t) {
        const int g = t / kGroupTiles, k = t % kGroupTiles;
        const SplitPair pair(words[half * 2][g][k], words[half * 2 + 1][g][k]);
#pragma unroll
        for (int p = 0; p < kSplitTerms; ++p) out[p][t][half] = pair.terms[p];
      }
    }
  }

  __device__ __forceinline__ void LoadUnit(uint32_t from, uint32_t lines, Unit& out) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t line = lines >> 8 * i & 0xff;
      const uint32_t byte = (lane_ / 4 ^ line % 8) * 16;
      out[i] = ptx::LoadShared16(from + line * kHopperLineBytes + byte);
    }
  }

  __device__ __forceinline__ static uint32_t Word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }

  // The operand of the product number `h` of a unit.
  __device__ __forceinline__ static void SplitRows(const Unit& x, int h, Rows& out) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = i / 2 * 2, row = 2 * h + i % 2;
      const SplitPair pair(Word(x[first], row), Word(x[first + 1], row));
#pragma unroll
      for (int p = 0; p < kSplitTerms; ++p) out[p][i] = pair.terms[p];
    }
  }

  __device__ __forceinline__ void Products(int r, int group, const Rows& rows, const Cols& cols) {
    float sums[kGroupTiles][4];
    const int first = group * kGroupTiles;
#pragma unroll
    for (int t = 0; t < kGroupTiles; ++t) {
      ptx::Mma16816First(sums[t], rows[0], cols[0][first + t]);
    }
#pragma unroll
    for (int order = 1; order < kSplitTerms; ++order) {
#pragma unroll
      for (int p = 0; p <= order; ++p) {
#pragma unroll
        for (int t = first; t < first + kGroupTiles; ++t) {
          ptx::Mma16816<__nv_bfloat16>(low_[r][t], rows[p], cols[order - p][t]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kGroupTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) high_[r][first + t][e] += sums[t][e];
    }
  }

  // The address waits for a word that was read, by a zero that only the run of the kernel knows.
  __device__ __forceinline__ void Release(int32_t stage, uint32_t last_read) const {
    const uint32_t zero = static_cast<uint32_t>(args_.hopper.rows) >> 31;
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(stages_.Empty(stage) + (last_read & zero));
  }

  // ---- Tiles that the blocks of a cluster share, each completing some of the row tiles ----

  __device__ __forceinline__ int32_t Rank() const {
    const HopperArgs& a = args_.hopper;
    return blockIdx.x - a.by_cluster.Quotient(blockIdx.x) * a.cluster;
  }

  __device__ __forceinline__ bool Completes(int32_t r, int32_t rank) const {
    return r * args_.hopper.cluster / kRowTiles == rank;
  }

  // Every block leaves the sums that others complete where its ring was, as its threads hold them.
  // Each is added up in an order of its own that does not change. The ring stays lent until
  // ReturnRing.
  __device__ __forceinline__ void AddSums() {
    constexpr int32_t kThreads = 32 * kShortWarps;
    constexpr uint32_t kPitch = kThreads * sizeof(float4);
    const int32_t rank = Rank();
    // Behind this, all warps have read the last stage.
    ptx::NamedBarrierSync(1, kThreads);
    const uint32_t own = stages_.base + kShortAlignment +
                         (warp_ * 32 + lane_) * static_cast<uint32_t>(sizeof(float4));
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (Completes(r, rank)) continue;
#pragma unroll
      for (int t = 0; t < kColTiles; ++t) {
        const float* sums = high_[r][t];
        ptx::StoreShared(own + (r * kColTiles + t) * kPitch,
                         make_float4(sums[0], sums[1], sums[2], sums[3]));
      }
    }
    TestDelay();
    ptx::ClusterSync();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (!Completes(r, rank)) continue;
      int32_t other = rank;
      for (int32_t peer = 1; peer < args_.hopper.cluster; ++peer) {
        if (++other == args_.hopper.cluster) other = 0;
        const uint32_t from = ptx::PeerAddress(own, other) + r * kColTiles * kPitch;
        float4 parts[kColTiles];
#pragma unroll
        for (int t = 0; t < kColTiles; ++t) parts[t] = ptx::LoadPeer(from + t * kPitch);
#pragma unroll
        for (int t = 0; t < kColTiles; ++t) {
          high_[r][t][0] += parts[t].x;
          high_[r][t][1] += parts[t].y;
          high_[r][t][2] += parts[t].z;
          high_[r][t][3] += parts[t].w;
        }
      }
    }
  }

  // When no block of the cluster reads sums any more, the ring is the producers' again.
  __device__ __forceinline__ void ReturnRing() const {
    TestDelay();
    ptx::FenceProxyAsync();
    ptx::ClusterSync();
  }

  // ---- The result, from registers: two rows of a column, or the neighbouring columns of a row
  // that a lane has of each group. ----

  __device__ __forceinline__ int32_t ColOf(int32_t t, int32_t e) const {
    const int32_t group = t / kGroupTiles, n = lane_ % 4 * 2 + e;
    return group * kGroupCols + n * kGroupTiles + t % kGroupTiles;
  }

  __device__ __forceinline__ void Store(const HopperCoordinates& at, bool shared) {
    const HopperArgs& a = args_.hopper;
    const int32_t row0 = at.n_tile * kSplitRows + lane_ / 4 * 4;
    const int32_t col0 = at.col_tile * kSplitCols + warp_ * kSplitWarpCols;
    if (a.bias != nullptr) AddBias(a.bias + int64_t{at.batch} * a.cols, col0);
    const int64_t first = int64_t{at.batch} * a.rows * a.cols;
    if (a.emits_sum) StoreTo(static_cast<float*>(args_.sum) + first, row0, col0, shared);
    ActivateAll(a.activation, reinterpret_cast<float (&)[kRowTiles * kColTiles * 4]>(high_));
    StoreTo(static_cast<float*>(args_.result) + first, row0, col0, shared);
  }

  __device__ __forceinline__ void AddBias(const float* bias, int32_t col0) {
#pragma unroll
    for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int32_t col = col0 + ColOf(t, e);
        const float of = col < args_.hopper.cols ? __ldg(bias + col) : 0.0f;
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          high_[r][t][e] += of;
          high_[r][t][2 + e] += of;
        }
      }
    }
  }

  __device__ __forceinline__ void StoreTo(float* y, int32_t row0, int32_t col0, bool shared) const {
    const int32_t rank = Rank();
    const bool all_whole = args_.hopper.cols % 4 == 0;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (shared && !Completes(r, rank)) continue;
      const int32_t row = row0 + r / kSlabTiles * SplitTile::kLineElements + r % kSlabTiles * 2;
      if (row >= args_.hopper.rows) continue;
      if (args_.hopper.result_feature_major) {
        StoreFeatureMajor(y + row, r, col0);
      } else {
        StoreRowMajor(y + int64_t{row} * args_.hopper.cols, r, col0, all_whole);
      }
    }
  }

  __device__ __forceinline__ void StoreFeatureMajor(float* y, int r, int32_t col0) const {
#pragma unroll
    for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int32_t col = col0 + ColOf(t, e);
        if (col < args_.hopper.cols) {
          *reinterpret_cast<float2*>(y + int64_t{col} * args_.hopper.rows) =
              make_float2(high_[r][t][e], high_[r][t][2 + e]);
        }
      }
    }
  }

  __device__ __forceinline__ void StoreRowMajor(float* y, int r, int32_t col0, bool vector) const {
    const int32_t cols = args_.hopper.cols;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        float line[2 * kGroupTiles];
#pragma unroll
        for (int i = 0; i < 2 * kGroupTiles; ++i) {
          line[i] = high_[r][g * kGroupTiles + i % kGroupTiles][half * 2 + i / kGroupTiles];
        }
        const int32_t col = col0 + ColOf(g * kGroupTiles, 0);
        StoreVector(y + half * cols + col, line, cols - col, vector);
      }
    }
  }

  const ShortArgs& args_;
  ShortStages stages_;
  const int32_t lane_;
  const int32_t warp_;
  uint32_t values_;  // from the start of a stage to what the lane reads
  uint32_t table_;
  float high_[kRowTiles][kColTiles][4];
  float low_[kRowTiles][kColTiles][4];
};

}  // namespace jax_nm
