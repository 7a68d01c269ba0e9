// The tiles of the skinny kernels whose values come in bulk, and what lies in their shared memory.
// Plain C++.
//
// A block owns block_rows rows, which may be all of them, and block_cols columns. All its warps
// share one ring of stages. x_warps of them copy x, in teams, each for its own steps, and one more
// has the values copied; the others multiply. Those form kept_warps groups, each with its own 16
// slots of a stage in turn, and lie side by side along the columns in a group.
#pragma once

#include <cstdint>

#include "skinny_config.h"

namespace jax_nm {

constexpr int32_t kSkinnyBulkMaxStages = 16;
constexpr int32_t kSkinnyBulkWarpCols = 32;  // of a warp: with 64 rows, 64 sums a lane
constexpr int32_t kSkinnyBulkMaxThreads = 544;

// The warps that multiply.
constexpr int32_t SkinnyMultiplyWarps(const Config& c) {
  return c.block_cols / kSkinnyBulkWarpCols * c.kept_warps;
}

// The teams of warps that copy x.
constexpr int32_t SkinnyTeams(const Config& c) {
  int32_t teams = c.x_warps;
  while (teams > c.stages) teams /= 2;
  return teams;
}

// A stage holds the values of block_kept slots in slabs of 64 columns, the windows that they pick
// from as rows of features, from which ldmatrix gathers, and their indices.
struct SkinnyBulkLayout {
  int32_t slab_bytes;      // between slabs
  int32_t x_offset;        // from the start of a stage
  int32_t features;        // that are staged
  int32_t indices_offset;  // [groups_in_tile, block_kept]
  int32_t stage_bytes;
  SkinnySums sums;
  int64_t bytes;
};

// What a slab has of a slot is one line of the 128-byte swizzle of bulk copies, which wants
// addresses that are multiples of 1024.
constexpr int32_t kSkinnySlabCols = 64;
constexpr int32_t kSkinnyLineBytes = 128;
constexpr int32_t kSkinnyAlignment = 1024;
// Before the ring: a line of zeros and two barriers for each stage.
constexpr int32_t kSkinnyBarriersOffset = kSkinnyLineBytes;
constexpr int32_t kSkinnyHeaderBytes = kSkinnyAlignment;
static_assert(kSkinnyBarriersOffset + 16 * kSkinnyBulkMaxStages <= kSkinnyHeaderBytes,
              "the header must hold the barriers");
// Features that a warp transposes at a time.
constexpr int32_t kSkinnyFeatures = 32;

constexpr SkinnyBulkLayout MakeSkinnyBulkLayout(const Config& c, int32_t m) {
  constexpr int32_t kVector = 8;
  SkinnyBulkLayout s{};
  s.slab_bytes = c.block_kept * kSkinnyLineBytes;
  s.x_offset = c.block_cols / kSkinnySlabCols * s.slab_bytes;
  // Copies begin at multiples of a vector in memory. A window may begin in the middle of one.
  const int32_t before = m % kVector == 0 ? 0 : kVector - 1;
  s.features = RoundUp(c.block_windows * m + before, kSkinnyFeatures);
  s.indices_offset = s.x_offset + s.features * c.block_rows * 2;
  s.stage_bytes = RoundUp(s.indices_offset + c.groups_in_tile * c.block_kept, kSkinnyAlignment);
  s.sums = MakeSkinnySums(c);
  const int64_t ring = int64_t{s.stage_bytes} * c.stages;
  const int64_t sums = s.sums.Bytes(c.kept_warps);
  // Dynamic shared memory need not begin at a multiple of the alignment.
  s.bytes = kSkinnyAlignment + kSkinnyHeaderBytes + (ring > sums ? ring : sums);
  return s;
}

}  // namespace jax_nm
