// The sums of a warp of the kernels for float32 by products in bfloat16: row tiles of 16 by 32
// columns.
//
// With a = a0 + a1 + a2 and b = b0 + b1 + b2, of which every term has 8 bits less to say than the
// one before,
//
//   a b = a0 b0 + (a0 b1 + a1 b0) + (a0 b2 + a1 b1 + a2 b0)
//
// up to 2^-22 of it. Tensor cores cut off what they add to long sums, so the a0 b0 of 16 or 32
// elements of the reduction are summed afresh and then added in float32. The others are 2^-7 of
// them or less, and so is what is cut off: they have sums of their own for the whole reduction.
// Where a or b is infinite these are NaN, and made finite before they are added, so that the a0 b0
// decide.
#pragma once

#include "hopper_walk.cuh"
#include "ptx_cluster.cuh"
#include "ptx_hopper.cuh"
#include "ptx_mma.cuh"
#include "short_config.h"
#include "split_config.h"
#include "split_numbers.cuh"
#include "test_delay.cuh"

namespace jax_nm {

template <int kRowTiles, int kGroupCols>
struct SplitSums {
  static constexpr int kGroups = kSplitWarpCols / kGroupCols;
  static constexpr int kGroupTiles = kGroupCols / 8;
  static constexpr int kColTiles = kSplitWarpCols / 8;

  using Rows = uint32_t[kSplitTerms][4];             // the terms of an operand of 16 rows
  using Cols = uint32_t[kSplitTerms][kColTiles][2];  // and of one of the warp's columns
  using Fresh = float[kGroupTiles][4];               // sums of a0 b0 for a row tile of a group

  float high[kRowTiles][kColTiles][4];
  float low[kRowTiles][kColTiles][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) high[r][t][e] = low[r][t][e] = 0.0f;
      }
    }
  }

  // The products of 16 elements of the reduction, of which those of a0 b0 begin or go on with
  // `fresh`.
  template <bool kFirst>
  __device__ __forceinline__ void Multiply(int r, int group, const Rows& rows, const Cols& cols,
                                           Fresh& fresh) {
    const int first = group * kGroupTiles;
#pragma unroll
    for (int t = 0; t < kGroupTiles; ++t) {
      if constexpr (kFirst) {
        ptx::Mma16816First(fresh[t], rows[0], cols[0][first + t]);
      } else {
        ptx::Mma16816<__nv_bfloat16>(fresh[t], rows[0], cols[0][first + t]);
      }
    }
#pragma unroll
    for (int order = 1; order < kSplitTerms; ++order) {
#pragma unroll
      for (int p = 0; p <= order; ++p) {
#pragma unroll
        for (int t = first; t < first + kGroupTiles; ++t) {
          ptx::Mma16816<__nv_bfloat16>(low[r][t], rows[p], cols[order - p][t]);
        }
      }
    }
  }

  __device__ __forceinline__ void Add(int r, int group, const Fresh& fresh) {
#pragma unroll
    for (int t = 0; t < kGroupTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) high[r][group * kGroupTiles + t][e] += fresh[t][e];
    }
  }

  // `high` becomes the result.
  __device__ __forceinline__ void Complete() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) high[r][t][e] += Clamp(low[r][t][e]);
      }
    }
  }

  // ---- Tiles that the blocks of a cluster share, each completing some of the row tiles ----

  __device__ __forceinline__ static int32_t Rank(const HopperArgs& a) {
    return blockIdx.x - a.by_cluster.Quotient(blockIdx.x) * a.cluster;
  }

  __device__ __forceinline__ static bool IsOf(const HopperArgs& a, int32_t r, int32_t rank) {
    return r * a.cluster / kRowTiles == rank;
  }

  // Every block leaves the sums that others complete in its ring, as its threads hold them. Each is
  // added up in an order of its own that does not change. The ring stays lent until ReturnRing.
  __device__ __forceinline__ void AddOfCluster(const HopperArgs& a, uint32_t ring, int32_t warp,
                                               int32_t lane) {
    constexpr int32_t kThreads = 32 * kShortWarps;
    constexpr uint32_t kPitch = kThreads * sizeof(float4);
    const int32_t rank = Rank(a);
    // Behind this, all warps have read the last stage.
    ptx::NamedBarrierSync(1, kThreads);
    const uint32_t own = ring + (warp * 32 + lane) * static_cast<uint32_t>(sizeof(float4));
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (IsOf(a, r, rank)) continue;
#pragma unroll
      for (int t = 0; t < kColTiles; ++t) {
        const float* sums = high[r][t];
        ptx::StoreShared(own + (r * kColTiles + t) * kPitch,
                         make_float4(sums[0], sums[1], sums[2], sums[3]));
      }
    }
    TestDelay();
    ptx::ClusterSync();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      if (!IsOf(a, r, rank)) continue;
      int32_t other = rank;
      for (int32_t peer = 1; peer < a.cluster; ++peer) {
        if (++other == a.cluster) other = 0;
        const uint32_t from = ptx::PeerAddress(own, other) + r * kColTiles * kPitch;
        float4 parts[kColTiles];
#pragma unroll
        for (int t = 0; t < kColTiles; ++t) parts[t] = ptx::LoadPeer(from + t * kPitch);
#pragma unroll
        for (int t = 0; t < kColTiles; ++t) {
          high[r][t][0] += parts[t].x;
          high[r][t][1] += parts[t].y;
          high[r][t][2] += parts[t].z;
          high[r][t][3] += parts[t].w;
        }
      }
    }
  }

  // When no block of the cluster reads sums any more, the ring is the producers' again.
  __device__ __forceinline__ static void ReturnRing() {
    TestDelay();
    ptx::FenceProxyAsync();
    ptx::ClusterSync();
  }
};

}  // namespace jax_nm
