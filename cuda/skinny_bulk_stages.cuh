// What the warps of a block share in the skinny kernels whose values come in bulk: its part of the
// operands, and the ring of stages.
#pragma once

#include <cstdint>

#include "kernel_args.h"
#include "ptx_barrier.cuh"
#include "skinny_bulk_config.h"

namespace jax_nm {

// Where the 16-byte vectors of a staged feature lie is permuted, so that the same vector of eight
// features that differ in their last three bits lies in different banks.
template <int kRows>
__device__ __forceinline__ int32_t SkinnyLineSwizzle(int32_t feature) {
  return kRows == 64   ? feature & 7
         : kRows == 32 ? feature >> 1 & 3
         : kRows == 16 ? feature >> 2 & 1
                       : 0;
}

// Where the vector of rows 8 `row_tile` and up of a staged feature lies, from the first feature on.
// As features are aligned to their size, row_tile * 16 may be XORed to it instead.
template <int kRows>
__device__ __forceinline__ int32_t SkinnyPlace(int32_t feature, int32_t row_tile) {
  return feature * (kRows * 2) + (row_tile ^ SkinnyLineSwizzle<kRows>(feature)) * 16;
}

// The stages of a block and the barriers that hand them over.
struct SkinnyStages {
  uint32_t barriers;
  uint32_t ring;
  int32_t stage_bytes;
  int32_t stages;

  int32_t stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ uint32_t Full() const { return barriers + stage * 16; }
  __device__ __forceinline__ uint32_t Empty() const { return barriers + stage * 16 + 8; }
  __device__ __forceinline__ uint32_t Address() const { return ring + stage * stage_bytes; }
  __device__ __forceinline__ void WaitFull() const { ptx::BarrierWait(Full(), parity); }
  __device__ __forceinline__ void WaitEmpty() const { ptx::BarrierWait(Empty(), parity ^ 1); }
  // By at most `stages` steps.
  __device__ __forceinline__ void Advance(int32_t steps = 1) {
    stage += steps;
    if (stage >= stages) {
      stage -= stages;
      parity ^= 1;
    }
  }
};

template <class T, int kRows>
struct SkinnyTile {
  static constexpr int32_t kVector = 8;

  const KernelArgs& args;
  const T* x;  // from the first row of the tile on
  const T* values;
  const uint8_t* indices;
  int32_t rows;  // of x that there are in the tile
  int32_t batch;
  int32_t col0;
  int32_t first_group;

  __device__ __forceinline__ SkinnyTile(const KernelArgs& a, const TileCoordinates& tile)
      : args(a) {
    const int32_t row0 = tile.outer * kRows;
    x = static_cast<const T*>(a.first) + tile.batch * a.rows * a.depth +
        (a.first_feature_major ? row0 : int64_t{row0} * a.depth);
    values = static_cast<const T*>(a.second) + tile.batch * a.kept * a.values_cols;
    indices = a.indices + tile.batch * a.groups * a.kept;
    rows = min(a.rows - row0, kRows);
    batch = static_cast<int32_t>(tile.batch);
    col0 = tile.inner * a.config.block_cols;
    first_group = a.by_vector_length.Quotient(col0);
  }

  // Of the staged features; a multiple of a vector.
  __device__ __forceinline__ int32_t FirstFeature(int32_t step) const {
    return args.by_n.Quotient(step * args.config.block_kept) * args.m & -kVector;
  }
};

}  // namespace jax_nm
