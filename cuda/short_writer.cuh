// From the sums of a warp of the kernels for short vectors to the result.
#pragma once

#include "activation.cuh"
#include "hopper_staging.cuh"
#include "short_config.h"

namespace jax_nm {

// The sums of a lane: 8 rows of each slab by two columns of every 8.
template <class Tile>
struct ShortSums {
  static constexpr int kColTiles = Tile::kWarpCols / 8;
  static constexpr int kCount = Tile::kSlabs * 4 * kColTiles * 4;

  // `pair` counts pairs of rows; `e` is the column and twice the row.
  static constexpr int Index(int slab, int pair, int tile, int e) {
    return ((slab * 4 + pair) * kColTiles + tile) * 4 + e;
  }
};

// The 8 rows of a lane are 16 bytes of a column, those of eight lanes 128. For a row-major result
// the lanes of a quad exchange columns, which gives 64 bytes of a row. So sums go to memory without
// a detour through shared memory, and a warp waits for no other.
template <class Out, class Tile>
class ShortWriter {
 public:
  using Sums = float[ShortSums<Tile>::kCount];

  __device__ __forceinline__ ShortWriter(const ShortArgs& args, const HopperCoordinates& at,
                                         int32_t warp)
      : args_(args),
        common_(args.common),
        lane_(threadIdx.x % 4),
        batch_(at.batch),
        row_(at.n_tile * Tile::kBlockRows + threadIdx.x % 32 / 4 * 8),
        col_(at.col_tile * Tile::kBlockCols + warp * Tile::kWarpCols) {}

  // Changes the sums on the way.
  __device__ __forceinline__ void Store(Sums& sums) const {
    if (common_.bias != nullptr) AddBias(sums);
    if (args_.sum != nullptr) StoreTo(args_.sum, sums);
    Activate(sums);
    StoreTo(args_.result, sums);
  }

 private:
  static constexpr bool kHalf = sizeof(Out) == 2;
  static constexpr int kColTiles = ShortSums<Tile>::kColTiles;

  __device__ __forceinline__ void AddBias(Sums& sums) const {
    const float* bias = common_.bias + int64_t{batch_} * common_.cols;
#pragma unroll
    for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float added = __ldg(bias + min(col_ + t * 8 + lane_ * 2 + c, common_.cols - 1));
#pragma unroll
        for (int i = 0; i < Tile::kSlabs * 8; ++i) {
          sums[ShortSums<Tile>::Index(0, i / 2, t, c + i % 2 * 2)] += added;
        }
      }
    }
  }

  // Not all at once: where few sums leave many registers, the compiler would interleave so many
  // of the long ones that they spill.
  __device__ __forceinline__ void Activate(Sums& sums) const {
    constexpr int kPart = 16;
#pragma unroll
    for (int i = 0; i < ShortSums<Tile>::kCount; i += kPart) {
      ActivateAll(common_.activation, reinterpret_cast<float (&)[kPart]>(sums[i]));
    }
  }

  __device__ __forceinline__ void StoreTo(void* matrix, const Sums& sums) const {
    Out* y = static_cast<Out*>(matrix) + int64_t{batch_} * common_.rows * common_.cols;
    common_.result_feature_major ? StoreRows(y, sums) : StoreCols(y, sums);
  }

  // Rows are whole vectors, so a lane's 8 rows exist or do not.
  __device__ __forceinline__ void StoreRows(Out* y, const Sums& sums) const {
#pragma unroll
    for (int slab = 0; slab < Tile::kSlabs; ++slab) {
#pragma unroll
      for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int32_t row = row_ + slab * kHopperLineElements;
          const int32_t col = col_ + t * 8 + lane_ * 2 + c;
          if (row >= common_.rows || col >= common_.cols) continue;
          float rows[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            rows[i] = sums[ShortSums<Tile>::Index(slab, i / 2, t, c + i % 2 * 2)];
          }
          StoreEight(y + int64_t{col} * common_.rows + row, rows);
        }
      }
    }
  }

  __device__ __forceinline__ void StoreCols(Out* y, const Sums& sums) const {
#pragma unroll
    for (int i = 0; i < Tile::kSlabs * 8; ++i) {
      const int32_t row = row_ + i / 8 * kHopperLineElements + i % 8;
#pragma unroll
      for (int t = 0; t < kColTiles; t += 4) {
        // Of four times 8 columns, those of number `lane_`, and the float32 ones as they lie.
        if constexpr (kHalf) {
          uint32_t pairs[4];
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int first = ShortSums<Tile>::Index(0, i / 2, t + k, i % 2 * 2);
            pairs[k] = RoundPair<Out>(sums[first], sums[first + 1]);
          }
          Exchange(pairs);
          const int32_t col = col_ + (t + lane_) * 8;
          if (row < common_.rows && col < common_.cols) {
            StorePairs(y + int64_t{row} * common_.cols + col, pairs, common_.cols - col);
          }
        } else {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int first = ShortSums<Tile>::Index(0, i / 2, t + k, i % 2 * 2);
            const int32_t col = col_ + (t + k) * 8 + lane_ * 2;
            if (row < common_.rows && col < common_.cols) {
              StoreTwo(y + int64_t{row} * common_.cols + col, sums[first], sums[first + 1],
                       common_.cols - col);
            }
          }
        }
      }
    }
  }

  // Lane q of a quad gets number q of every lane.
  __device__ __forceinline__ void Exchange(uint32_t (&words)[4]) const {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
      const bool upper = (lane_ & bit) != 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i & bit) != 0) continue;
        const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? words[i] : words[i | bit], bit);
        (upper ? words[i] : words[i | bit]) = got;
      }
    }
  }

  __device__ __forceinline__ static void StoreEight(Out* to, const float (&v)[8]) {
    if constexpr (kHalf) {
      *reinterpret_cast<uint4*>(to) =
          make_uint4(RoundPair<Out>(v[0], v[1]), RoundPair<Out>(v[2], v[3]),
                     RoundPair<Out>(v[4], v[5]), RoundPair<Out>(v[6], v[7]));
    } else {
      reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
      reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
  }

  __device__ __forceinline__ void StorePairs(Out* to, const uint32_t (&pairs)[4],
                                             int32_t available) const {
    if (args_.result_vector) {
      *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      return;
    }
    auto* bits = reinterpret_cast<uint16_t*>(to);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < available) bits[i] = static_cast<uint16_t>(pairs[i / 2] >> i % 2 * 16);
    }
  }

  __device__ __forceinline__ void StoreTwo(Out* to, float a, float b, int32_t available) const {
    if (args_.result_vector) {
      *reinterpret_cast<float2*>(to) = make_float2(a, b);
    } else {
      to[0] = a;
      if (available > 1) to[1] = b;
    }
  }

  const ShortArgs& args_;
  const HopperArgs& common_;
  const int32_t lane_;  // of its quad
  const int32_t batch_;
  const int32_t row_;  // the lane's first
  const int32_t col_;  // the warp's first
};

}  // namespace jax_nm
