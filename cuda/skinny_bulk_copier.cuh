// What the copying warps of a skinny kernel put into the stages of its ring.
#pragma once

#include <cstdint>

#include "ptx.cuh"
#include "ptx_hopper.cuh"
#include "skinny_bulk_stages.cuh"
#include "test_delay.cuh"
#include "tile_io.cuh"

namespace jax_nm {

// Has values copied through their tensor map, by one warp.
template <class Tile>
__device__ __forceinline__ void CopyValuesInBulk(const Tile& tile, const SkinnyBulkLayout& layout,
                                                 const CUtensorMap* map, const StepRange& range,
                                                 SkinnyStages stages) {
  const Config& config = tile.args.config;
  const int32_t slabs = config.block_cols / kSkinnySlabCols;
  for (int32_t step = range.first; step < range.last; ++step, stages.Advance()) {
    stages.WaitEmpty();
    TestDelay();
    if (threadIdx.x % 32 == 0) {
      ptx::BarrierArriveExpect(stages.Full(), slabs * layout.slab_bytes);
      for (int32_t slab = 0; slab < slabs; ++slab) {
        ptx::LoadBox(stages.Address() + slab * layout.slab_bytes, map, stages.Full(),
                     tile.col0 + slab * kSkinnySlabCols, step * config.block_kept, tile.batch);
      }
    }
    __syncwarp();
  }
}

// A team of warps that copies x and indices, and values where no tensor map can describe them. The
// teams take steps in turn, because a step costs each of them the latency of memory. Of x, rows and
// features past its end are not written: what they hold meets no sum that is stored.
template <class T, int kRows>
struct SkinnyCopier {
  static constexpr int32_t kVector = 8;
  static constexpr int32_t kRowTiles = kRows / 8;

  const SkinnyTile<T, kRows>& tile;
  const KernelArgs& args;
  const SkinnyBulkLayout& layout;
  int32_t team, teams;
  int32_t thread, threads;  // of the team

  __device__ __forceinline__ void Run(const StepRange& range, SkinnyStages stages) const {
    stages.Advance(team);
    for (int32_t step = range.first + team; step < range.last;
         step += teams, stages.Advance(teams)) {
      stages.WaitEmpty();
      TestDelay();
      const int32_t first_feature = tile.FirstFeature(step);
      const uint32_t lines = stages.Address() + layout.x_offset;
      if (!args.first_vector) {
        CopyRest(step, stages);
        CopyElements(first_feature, lines);
      } else if (args.first_feature_major) {
        CopyRest(step, stages);
        CopyLines(first_feature, lines);
      } else {
        CopyRows(first_feature, lines);
        ptx::CommitGroup();
        CopyRest(step, stages);
        ptx::WaitGroup<0>();
        TestDelay();
        Transpose(lines);
      }
      ptx::BarrierArriveAfterCopies(stages.Full());
      __syncwarp();
      TestDelay();
      if (thread % 32 == 0) ptx::BarrierArrive(stages.Full());
    }
  }

  // Of a row-major x, a warp copies 8 rows by 32 features at once: the lane of row p and octet q of
  // the features has 16 bytes. They lie where feature `lane` of these rows goes until the same warp
  // has transposed them in place. Through registers the loads would be on their way in L1, of which
  // the ring leaves 28 KB: no more than 10 bytes a cycle arrived.
  __device__ __forceinline__ void CopyRows(int32_t first_feature, uint32_t lines) const {
    const int32_t lane = thread % 32, p = lane / 4;
    const uint32_t place = lines + SkinnyPlace<kRows>(lane, 0);
    const int32_t first = thread / 32 * kSkinnyFeatures, pass = threads / 32 * kSkinnyFeatures;
    const int64_t eight_rows = int64_t{args.depth} * 8;
    int32_t feature = first_feature + first + lane % 4 * kVector;
    const T* row = tile.x + (int64_t{p} * args.depth + feature);
#pragma unroll(kRowTiles < 4 ? 4 / kRowTiles : 1)
    for (int32_t f = first; f < layout.features; f += pass, feature += pass, row += pass) {
      const int32_t rows = feature < args.depth ? tile.rows : 0;
      const T* from = row;
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t, from += eight_rows) {
        if (t * 8 + p < rows) ptx::CopyAsync16((place + f * (kRows * 2)) ^ t * 16, from, 16);
      }
    }
  }

  // A lane takes its pairs of features in an order that begins with pair lane % 4, so that the
  // eight features of a matrix lie in different banks.
  __device__ __forceinline__ void Transpose(uint32_t lines) const {
    constexpr int kBlocks = kRowTiles < 4 ? 4 / kRowTiles : 1;  // of features in registers
    const int32_t lane = thread % 32, line = lane % 8, matrix = lane / 8;
    const int32_t target = line / 2 * 8 + (matrix + line / 2) % 4 * 2 + line % 2;
    const uint32_t from = lines + SkinnyPlace<kRows>(lane, 0);
    const uint32_t to = lines + SkinnyPlace<kRows>(target, 0);
    const int32_t pass = threads / 32 * kSkinnyFeatures;
    const int32_t row_tiles = CeilDiv(tile.rows, 8);
#pragma unroll 1
    for (int32_t f = thread / 32 * kSkinnyFeatures; f < layout.features; f += kBlocks * pass) {
      uint4 octets[kBlocks][kRowTiles];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int32_t feature = f + b * pass;
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          if (feature < layout.features && t < row_tiles) {
            octets[b][t] = ptx::LoadShared16((from + feature * (kRows * 2)) ^ t * 16);
          }
        }
      }
      __syncwarp();
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const int32_t feature = f + b * pass;
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          if (feature < layout.features && t < row_tiles) {
            ptx::StoreMatricesTransposed((to + feature * (kRows * 2)) ^ t * 16,
                                         Rotated(octets[b][t], lane % 4));
          }
        }
      }
    }
  }

  __device__ __forceinline__ static ptx::FourMatrices Rotated(const uint4& v, int32_t by) {
    const bool one = by & 1, two = by & 2;
    const uint32_t a = one ? v.y : v.x, b = one ? v.z : v.y, c = one ? v.w : v.z,
                   d = one ? v.x : v.w;
    return {{two ? c : a, two ? d : b, two ? a : c, two ? b : d}};
  }

  // Of a feature-major x.
  __device__ __forceinline__ void CopyLines(int32_t first_feature, uint32_t lines) const {
#pragma unroll 4
    for (int32_t i = thread; i < layout.features * kRowTiles; i += threads) {
      const int32_t t = i % kRowTiles, feature = i / kRowTiles;
      if (t * 8 < tile.rows && first_feature + feature < args.depth) {
        ptx::CopyAsync16(lines + SkinnyPlace<kRows>(feature, t),
                         tile.x + (int64_t{first_feature + feature} * args.rows + t * 8), 16);
      }
    }
  }

  __device__ __forceinline__ void CopyElements(int32_t first_feature, uint32_t lines) const {
    const bool feature_major = args.first_feature_major;
#pragma unroll 4
    for (int32_t i = thread; i < layout.features * kRows; i += threads) {
      const int32_t row = feature_major ? i % kRows : i / layout.features;
      const int32_t feature = feature_major ? i / kRows : i - row * layout.features;
      if (row < tile.rows && first_feature + feature < args.depth) {
        *Shared<T>(lines + SkinnyPlace<kRows>(feature, row / 8) + row % 8 * 2) =
            tile.x[feature_major ? int64_t{first_feature + feature} * args.rows + row
                                 : int64_t{row} * args.depth + first_feature + feature];
      }
    }
  }

  // Indices, and values that do not come in bulk.
  __device__ __forceinline__ void CopyRest(int32_t step, const SkinnyStages& stages) const {
    const int32_t first_slot = step * args.config.block_kept;
    CopyIndices(first_slot, stages.Address() + layout.indices_offset);
    if (args.bulk_values) return;
    if (args.second_vector) {
      CopyValues(first_slot, stages.Address());
    } else {
      CopyValueElements(first_slot, stages.Address());
    }
  }

  // Groups and slots past the end have the index 0.
  __device__ __forceinline__ void CopyIndices(int32_t first_slot, uint32_t to) const {
    const int32_t slots = args.config.block_kept, bytes = args.index_bytes;
    const int32_t log2_slots = 31 - __clz(slots);
    for (int32_t i = thread * bytes; i < args.config.groups_in_tile * slots; i += threads * bytes) {
      const int32_t group = i >> log2_slots, slot = i & (slots - 1);
      const bool valid = tile.first_group + group < args.groups && first_slot + slot < args.kept;
      const uint8_t* from =
          tile.indices +
          (valid ? int64_t{tile.first_group + group} * args.kept + first_slot + slot : 0);
      if (bytes == 16) {
        ptx::CopyAsync16(to + i, from, valid ? 16 : 0);
      } else if (bytes == 4) {
        ptx::CopyAsync4(to + i, from, valid ? 4 : 0);
      } else {
        *Shared<uint8_t>(to + i) = valid ? *from : 0;
      }
    }
  }

  // Of slot `slot` of a stage, column 8 `vector`.
  __device__ __forceinline__ int32_t ValuePlace(int32_t slot, int32_t vector) const {
    return vector / 8 * layout.slab_bytes + slot * kSkinnyLineBytes + ((vector ^ slot) & 7) * 16;
  }

  // Slots without a value, and columns past the end, are zeros.
  __device__ __forceinline__ void CopyValues(int32_t first_slot, uint32_t stage) const {
    const int32_t vectors = args.config.block_cols / kVector;
#pragma unroll 4
    for (int32_t i = thread; i < args.config.block_kept * vectors; i += threads) {
      const int32_t slot = i / vectors, vector = i % vectors;
      const int32_t column = tile.col0 + vector * kVector;
      const bool valid = column < args.values_cols && first_slot + slot < args.valid_kept;
      const T* from = tile.values + int64_t{first_slot + slot} * args.values_cols + column;
      ptx::CopyAsync16(stage + ValuePlace(slot, vector), valid ? from : tile.values,
                       valid ? 16 : 0);
    }
  }

  __device__ __forceinline__ void CopyValueElements(int32_t first_slot, uint32_t stage) const {
    const int32_t width = args.config.block_cols;
#pragma unroll 4
    for (int32_t i = thread; i < args.config.block_kept * width; i += threads) {
      const int32_t slot = i / width, column = i % width;
      const bool valid = first_slot + slot < args.valid_kept && tile.col0 + column < args.cols;
      *Shared<T>(stage + ValuePlace(slot, column / kVector) + column % 8 * 2) =
          valid ? tile.values[int64_t{first_slot + slot} * args.values_cols + tile.col0 + column]
                : Round<T>(0.0f);
    }
  }

  template <class E>
  __device__ __forceinline__ static E* Shared(uint32_t address) {
    return static_cast<E*>(__cvta_shared_to_generic(address));
  }
};

}  // namespace jax_nm
