// What one group of warps of a skinny kernel copies into a stage of its ring.
#pragma once

#include <cstdint>

#include "kernel_args.h"
#include "ptx.cuh"
#include "skinny_config.h"
#include "tile_io.cuh"

namespace jax_nm {

// Where a slot's vectors of values lie is permuted in half precision, so that the eight slots that
// ldmatrix reads at once, 4 i and 4 i + 1 or 4 i + 2 and 4 i + 3, lie in different banks.
template <class T>
__device__ __forceinline__ int32_t SkinnySwizzle(int32_t slot) {
  return sizeof(T) == 2 ? (slot & 1) | (slot >> 1 & 6) : 0;
}

template <class T, int kWarpCols>
struct SkinnyRing {
  static constexpr int32_t kVector = 16 / sizeof(T);
  // The warps of a group copy whole slots: each has as many lanes per slot as it has vectors.
  static constexpr int32_t kPass = 32 * kVector / kWarpCols;
  static_assert(kPass >= 1 && kSkinnySlots % kPass == 0, "a step must be whole passes");

  const KernelArgs& args;
  const SkinnyLayout& layout;
  const T* x;  // from the first row of the tile on
  const T* values;
  const uint8_t* indices;
  int32_t rows;  // of x that there are in the tile
  int32_t col0;
  int32_t first_group;
  int32_t thread, threads;  // of the group of warps
  int32_t slot_in_pass, vector;

  __device__ __forceinline__ SkinnyRing(const KernelArgs& a, const SkinnyLayout& l,
                                        const TileCoordinates& tile)
      : args(a), layout(l) {
    const int32_t row0 = tile.outer * a.config.block_rows;
    x = static_cast<const T*>(a.first) + (tile.batch * a.rows + row0) * a.depth;
    values = static_cast<const T*>(a.second) + tile.batch * a.kept * a.values_cols;
    indices = a.indices + tile.batch * a.groups * a.kept;
    rows = min(a.rows - row0, a.config.block_rows);
    col0 = tile.inner * a.config.block_cols;
    first_group = a.by_vector_length.Quotient(col0);
    threads = a.config.threads / a.config.kept_warps;
    thread = threadIdx.x % threads;
    const int32_t vectors = a.config.block_cols / kVector;
    slot_in_pass = thread / vectors;
    vector = thread % vectors;
  }

  // Of the staged features; a multiple of a vector.
  __device__ __forceinline__ int32_t FirstFeature(int32_t step) const {
    return args.by_n.Quotient(step * args.config.block_kept) * args.m & -kVector;
  }

  __device__ __forceinline__ void Issue(int32_t step, unsigned char* stage) const {
    const int32_t first_slot = step * args.config.block_kept;
    if (args.second_vector) {
      CopyValues(first_slot, stage);
    } else {
      CopyValueElements(first_slot, stage);
    }
    const int32_t first_feature = FirstFeature(step);
    if (args.first_vector) {
      CopyLines(first_feature, stage + layout.lines_offset);
    } else {
      CopyLineElements(first_feature, stage + layout.lines_offset);
    }
    CopyIndices(first_slot, stage + layout.indices_offset);
  }

  // Slots without a value, and columns past the end, are zeros.
  __device__ __forceinline__ void CopyValues(int32_t first_slot, unsigned char* stage) const {
    const int32_t column = col0 + vector * kVector;
    const bool column_valid = column < args.values_cols;
    const int32_t slot0 = first_slot + slot_in_pass;
    const T* source = values + int64_t{slot0} * args.values_cols + column;
#pragma unroll 4
    for (int32_t i = 0; i < args.config.block_kept; i += kPass) {
      const bool valid = column_valid && slot0 + i < args.valid_kept;
      const int32_t slot = slot_in_pass + i;
      ptx::CopyAsync16(stage + slot * layout.values_pitch + (vector ^ SkinnySwizzle<T>(slot)) * 16,
                       valid ? source : values, valid ? 16 : 0);
      source += int64_t{kPass} * args.values_cols;
    }
  }

  __device__ __forceinline__ void CopyValueElements(int32_t first_slot,
                                                    unsigned char* stage) const {
    const int32_t width = args.config.block_cols;
#pragma unroll 4
    for (int32_t i = thread; i < args.config.block_kept * width; i += threads) {
      const int32_t slot = i / width, column = i % width;
      const bool valid = first_slot + slot < args.valid_kept && col0 + column < args.cols;
      T* to = reinterpret_cast<T*>(stage + slot * layout.values_pitch +
                                   (column / kVector ^ SkinnySwizzle<T>(slot)) * 16);
      const T* from = values + int64_t{first_slot + slot} * args.values_cols + col0 + column;
      CopyElement(to + column % kVector, valid ? from : values, valid);
    }
  }

  // Rows past the end of x are not written: what they hold meets no sum that is stored. Features
  // past its end are the last one, which an index that points there reads.
  __device__ __forceinline__ void CopyLines(int32_t first_feature, unsigned char* lines) const {
#pragma unroll 2
    for (int32_t i = thread; i < rows * layout.line_vectors; i += threads) {
      const int32_t row = args.by_line_vectors.Quotient(i);
      const int32_t place = i - row * layout.line_vectors;
      const int32_t feature = first_feature + place * kVector;
      unsigned char* to = lines + row * layout.line_bytes + place * 16;
      const T* line = x + int64_t{row} * args.depth;
      if (feature < args.depth) {
        ptx::CopyAsync16(to, line + feature, 16);
      } else {
        const T last = line[args.depth - 1];
#pragma unroll
        for (int k = 0; k < kVector; ++k) reinterpret_cast<T*>(to)[k] = last;
      }
    }
  }

  __device__ __forceinline__ void CopyLineElements(int32_t first_feature,
                                                   unsigned char* lines) const {
    const int32_t length = layout.line_vectors * kVector;
#pragma unroll 4
    for (int32_t i = thread; i < rows * length; i += threads) {
      const int32_t row = i / length, place = i % length;
      const int32_t feature = min(first_feature + place, args.depth - 1);
      CopyElement(reinterpret_cast<T*>(lines + row * layout.line_bytes) + place,
                  x + int64_t{row} * args.depth + feature, true);
    }
  }

  // Groups and slots past the end have the index 0.
  __device__ __forceinline__ void CopyIndices(int32_t first_slot, unsigned char* to) const {
    const int32_t slots = args.config.block_kept, bytes = args.index_bytes;
    for (int32_t i = thread * bytes; i < args.config.groups_in_tile * slots; i += threads * bytes) {
      const int32_t group = i / slots, slot = i % slots;
      const bool valid = first_group + group < args.groups && first_slot + slot < args.kept;
      const uint8_t* from =
          valid ? indices + int64_t{first_group + group} * args.kept + first_slot + slot : indices;
      if (bytes == 16) {
        ptx::CopyAsync16(to + i, from, valid ? 16 : 0);
      } else if (bytes == 4) {
        ptx::CopyAsync4(to + i, from, valid ? 4 : 0);
      } else {
        to[i] = valid ? *from : 0;
      }
    }
  }
};

// Where the four slots from `slot` on, a multiple of 4, find their feature in a line, in elements.
struct SlotPlaces {
  int32_t at[4];
};

__device__ __forceinline__ SlotPlaces PlacesOf(const KernelArgs& args, int32_t slot,
                                               uint32_t indices, int32_t first_feature) {
  SlotPlaces places;
  const bool one_window = args.n % 4 == 0;
  int32_t window = args.by_n.Quotient(slot) * args.m - first_feature;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j > 0 && !one_window) window = args.by_n.Quotient(slot + j) * args.m - first_feature;
    places.at[j] = window + min(static_cast<int32_t>(indices >> 8 * j & 255), args.m - 1);
  }
  return places;
}

}  // namespace jax_nm
