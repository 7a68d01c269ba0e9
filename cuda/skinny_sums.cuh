// The sums of one warp of a skinny kernel: its rows of x times its columns of the weight.
#pragma once

#include <cstdint>

#include "kernel_args.h"
#include "ptx_mma.cuh"
#include "skinny_ring.cuh"

namespace jax_nm {

// What a step's data are to a warp.
struct SkinnyStep {
  const unsigned char* stage;
  int32_t first_slot;
  int32_t first_feature;  // of the staged ones
};

// Half precision: mma with 16 columns of the weight as its first operand and 8 rows of x as the
// second. Of 16 slots lane 4 p + q has the four from 4 q on, which their indices, one word, allow:
// the order of a reduction is free as long as both operands have the same. x lies as in memory, so
// a lane reads its element of each slot by itself; 8 lanes read different banks of a slot, and two
// of four slots meet in a bank on average. Copying x transposed would cost more.
template <class T, int kRows, int kWarpCols, int kGroupCols>
struct SkinnyTensorSums {
  static constexpr int kRowTiles = kRows / 8;
  static constexpr int kParts = kWarpCols / kGroupCols;
  static constexpr int kPartTiles = kGroupCols / 16;
  static_assert(kWarpCols % kGroupCols == 0 && kGroupCols % 16 == 0,
                "the columns of a part must be whole tiles of mma");

  float sums[kParts][kPartTiles][kRowTiles][4] = {};

  __device__ __forceinline__ void Add(const KernelArgs& args, const SkinnyLayout& layout,
                                      const SkinnyStep& step, int32_t col0, int32_t first_group,
                                      int32_t warp_col) {
    const int32_t lane = threadIdx.x % 32, p = lane / 4, q = lane % 4;
    const unsigned char* line = step.stage + layout.lines_offset + p * layout.line_bytes;
    // The row of a matrix of ldmatrix that this lane points to.
    const int32_t matrix_slot = lane % 8 / 2 * 4 + lane % 2 + lane / 16 * 2;
    const int32_t matrix_vector = warp_col / 8 + lane / 8 % 2;
    const int32_t swizzle = SkinnySwizzle<T>(matrix_slot);
    const unsigned char* matrix = step.stage + matrix_slot * layout.values_pitch;
    const unsigned char* indices = step.stage + layout.indices_offset + 4 * q;
    int32_t group_indices[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int32_t column = col0 + warp_col + part * kGroupCols;
      group_indices[part] =
          (args.by_vector_length.Quotient(column) - first_group) * args.config.block_kept;
    }
#pragma unroll 1
    for (int32_t k = 0; k < args.config.block_kept; k += kSkinnySlots) {
      const int32_t slot = step.first_slot + k + 4 * q;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint32_t word = *reinterpret_cast<const uint32_t*>(indices + group_indices[part] + k);
        const SlotPlaces places = PlacesOf(args, slot, word, step.first_feature);
        uint32_t x[kRowTiles][2];
        Gather(line, layout.line_bytes, places, x);
        if (step.first_slot + k + kSkinnySlots > args.valid_kept) ClearInvalid(args, slot, x);
#pragma unroll
        for (int tile = 0; tile < kPartTiles; ++tile) {
          uint32_t weights[4];
          const int32_t place = matrix_vector + (part * kPartTiles + tile) * 2;
          ptx::LoadMatricesTransposed(weights, ptx::SharedAddress(matrix + k * layout.values_pitch +
                                                                  (place ^ swizzle) * 16));
#pragma unroll
          for (int t = 0; t < kRowTiles; ++t) {
            ptx::Mma16816<T>(sums[part][tile][t], weights, x[t]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ static void Gather(const unsigned char* line, int32_t line_bytes,
                                                const SlotPlaces& places,
                                                uint32_t (&x)[kRowTiles][2]) {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
      const uint16_t* row = reinterpret_cast<const uint16_t*>(line + t * 8 * line_bytes);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        x[t][h] = __byte_perm(row[places.at[2 * h]], row[places.at[2 * h + 1]], 0x5410);
      }
    }
  }

  // The values of padding slots are staged as zeros; what they would read must not count either,
  // because it may be infinite.
  __device__ __forceinline__ static void ClearInvalid(const KernelArgs& args, int32_t slot,
                                                      uint32_t (&x)[kRowTiles][2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int32_t left = args.valid_kept - slot - 2 * h;
      const uint32_t mask = left >= 2 ? 0xffffffffu : left == 1 ? 0xffffu : 0u;
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) x[t][h] &= mask;
    }
  }

  // To [kRows, pitch] floats, from the warp's first column on.
  __device__ __forceinline__ void Store(float* to, int32_t pitch) {
    const int32_t lane = threadIdx.x % 32, p = lane / 4, q = lane % 4;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int tile = 0; tile < kPartTiles; ++tile) {
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            to[(t * 8 + 2 * q + i % 2) * pitch + part * kGroupCols + tile * 16 + i / 2 * 8 + p] =
                sums[part][tile][t][i];
          }
        }
      }
    }
  }
};

// float32: a lane has four columns and all rows, a half-warp all columns of the warp; the two of
// them share the slots. An element of x goes to all lanes of a group at once.
template <int kRows, int kWarpCols>
struct SkinnyVectorSums {
  static constexpr int kCols = 4;
  static_assert(kWarpCols == 16 * kCols, "16 lanes must have the columns of a warp");

  float sums[kRows][kCols] = {};

  __device__ __forceinline__ void Add(const KernelArgs& args, const SkinnyLayout& layout,
                                      const SkinnyStep& step, int32_t col0, int32_t first_group,
                                      int32_t warp_col) {
    const int32_t lane = threadIdx.x % 32;
    const int32_t half_slot = lane / 16 * 4;
    const int32_t column = warp_col + lane % 16 * kCols;
    const int32_t group = args.by_vector_length.Quotient(col0 + column) - first_group;
    const unsigned char* line = step.stage + layout.lines_offset;
    const unsigned char* values = step.stage + column * 4 + half_slot * layout.values_pitch;
    const unsigned char* indices =
        step.stage + layout.indices_offset + group * args.config.block_kept + half_slot;
#pragma unroll 1
    for (int32_t k = 0; k < args.config.block_kept; k += 8) {
      const int32_t slot = step.first_slot + k + half_slot;
      const uint32_t word = *reinterpret_cast<const uint32_t*>(indices + k);
      const SlotPlaces places = PlacesOf(args, slot, word, step.first_feature);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // As in SkinnyTensorSums, what a padding slot would read must not count.
        if (slot + j >= args.valid_kept) break;
        const float4 weight =
            *reinterpret_cast<const float4*>(values + (k + j) * layout.values_pitch);
        const unsigned char* from = line + places.at[j] * 4;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float x = *reinterpret_cast<const float*>(from + r * layout.line_bytes);
          sums[r][0] += x * weight.x;
          sums[r][1] += x * weight.y;
          sums[r][2] += x * weight.z;
          sums[r][3] += x * weight.w;
        }
      }
    }
  }

  __device__ __forceinline__ void Store(float* to, int32_t pitch) {
    const int32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kCols; ++i) sums[r][i] += __shfl_xor_sync(0xffffffffu, sums[r][i], 16);
      if (lane < 16) {
        *reinterpret_cast<float4*>(to + r * pitch + lane * kCols) = {sums[r][0], sums[r][1],
                                                                     sums[r][2], sums[r][3]};
      }
    }
  }
};

}  // namespace jax_nm
