// The tiles of the skinny kernels of spmm, for at most 64 rows, and what lies in the shared memory
// of those for a row-major x; skinny_bulk_config.h is about the others. Plain C++.
//
// A block owns block_rows rows, which may be all of them, and block_cols columns. Its warps form
// kept_warps groups, which take the steps in turn; each group has its own ring of stages, and its
// warps lie side by side along the columns. Nothing but the sums at the end passes between groups.
#pragma once

#include <cstdint>

#include "config.h"

namespace jax_nm {

constexpr int32_t kSkinnyMaxRows = 64;
constexpr int32_t kSkinnyMaxStages = 8;
// Slots that a warp multiplies at a time: block_kept is a multiple of it.
constexpr int32_t kSkinnySlots = 16;

// Rows of the tile of a kernel; 0 if it is none of the skinny ones.
constexpr int32_t SkinnyRows(KernelId kernel) {
  switch (kernel) {
    case KernelId::kSpmmSkinny8:
    case KernelId::kSpmmSkinnyBulk8:
      return 8;
    case KernelId::kSpmmSkinny16:
    case KernelId::kSpmmSkinnyBulk16:
      return 16;
    case KernelId::kSpmmSkinny32:
    case KernelId::kSpmmSkinnyBulk32:
      return 32;
    case KernelId::kSpmmSkinny64:
    case KernelId::kSpmmSkinnyBulk64:
      return 64;
    default:
      return 0;
  }
}
constexpr bool IsSkinny(KernelId kernel) { return SkinnyRows(kernel) > 0; }
// Those whose values are copied in bulk, by Hopper, see kernel_spmm_skinny_bulk.cuh.
constexpr bool IsSkinnyBulk(KernelId kernel) {
  return KernelId::kSpmmSkinnyBulk8 <= kernel && kernel <= KernelId::kSpmmSkinnyBulk64;
}

// Columns of a warp: with all rows, at most 64 sums a lane in half precision, where 16 columns are
// one operand of mma.
constexpr int32_t SkinnyWarpCols(int32_t rows, int32_t element_bytes) {
  return element_bytes == 2 && rows == 64 ? 32 : 64;
}

// In float32 a half-warp has 64 columns, so 32 rows are 128 sums a lane.
constexpr int32_t SkinnyMaxThreads(int32_t rows, int32_t element_bytes) {
  return element_bytes == 4 && rows == 32 ? 256 : 512;
}

// Columns that surely lie in one group: in half precision one or two operands of mma, which share
// what is gathered for them, in float32 the four of a lane.
constexpr int32_t SkinnyGroupCols(bool shared_group, int32_t element_bytes) {
  return element_bytes == 4 ? 4 : shared_group ? 32 : 16;
}

// The sums of each group of warps as rows of floats; they replace the rings.
struct SkinnySums {
  int32_t pitch;   // floats between rows
  int32_t floats;  // of a group

  constexpr int64_t Bytes(int32_t groups) const { return int64_t{floats} * 4 * groups; }
};
constexpr SkinnySums MakeSkinnySums(const Config& c) {
  // Sums are written by 8 lanes along columns and 4 along pairs of rows: 8 floats beyond a multiple
  // of 32 for two rows, so to 32 banks.
  constexpr int32_t kPadding = 4;
  const int32_t pitch = c.block_cols + kPadding;
  return {pitch, c.block_rows * pitch};
}

// A stage holds the values of block_kept slots, the windows that they pick from as rows of x
// ("lines"), and their indices.
struct SkinnyLayout {
  int32_t values_pitch;    // bytes of a slot
  int32_t lines_offset;    // from the start of a stage
  int32_t line_vectors;    // 16-byte vectors of a line
  int32_t line_bytes;      // between lines: an odd number of vectors
  int32_t indices_offset;  // [groups_in_tile, block_kept]
  int32_t stage_bytes;
  int32_t ring_bytes;  // of one group of warps
  SkinnySums sums;
  int64_t bytes;
};

constexpr SkinnyLayout MakeSkinnyLayout(const Config& c, int32_t m, int32_t element_bytes) {
  SkinnyLayout s{};
  const int32_t vector = 16 / element_bytes;
  s.values_pitch = c.block_cols * element_bytes;
  s.lines_offset = c.block_kept * s.values_pitch;
  // Lines begin at multiples of a vector in memory. A window may begin in the middle of one.
  const int32_t before = m % vector == 0 ? 0 : vector - 1;
  s.line_vectors = CeilDiv(c.block_windows * m + before, vector);
  // Eight lines then lie in different banks.
  s.line_bytes = (s.line_vectors | 1) * 16;
  s.indices_offset = s.lines_offset + c.block_rows * s.line_bytes;
  s.stage_bytes = s.indices_offset + c.groups_in_tile * c.block_kept;
  s.ring_bytes = s.stage_bytes * c.stages;
  s.sums = MakeSkinnySums(c);
  const int64_t rings = int64_t{s.ring_bytes} * c.kept_warps;
  const int64_t sums = s.sums.Bytes(c.kept_warps);
  s.bytes = rings > sums ? rings : sums;
  return s;
}

}  // namespace jax_nm
