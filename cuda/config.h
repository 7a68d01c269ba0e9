// The launch configuration of a CUDA kernel: a value that `tuning` chooses, a kernel takes whole
// and a person can read. Plain C++: included by host code without CUDA headers and by nvcc.
//
// Every operation is a product over three extents (rows, cols, kept slots). A block owns a tile of
// two of them and walks over the third in steps, one step per stage of its shared-memory pipeline:
//
//   spmm     owns block_rows x block_cols of y        and steps over block_kept slots
//   spmm_t   owns block_rows x block_windows of dx    and steps over block_cols columns
//   sddmm    owns block_kept x block_cols of dvalues  and steps over block_rows rows
#pragma once

#include <cstdint>

#include "problem.h"

namespace jax_nm {

// How the gathered operand gets into shared memory.
enum class Staging : int32_t {
  kWindow = 0,   // every row of each window once; groups pick theirs from there
  kGather = 1,   // one row per (group, slot): only what is kept, repeated for each group
  kScatter = 2,  // nothing is gathered: the result's windows lie in shared memory (spmm_t)
};

// Ids are the values of the `kernel` attribute: never reuse one.
enum class KernelId : int32_t {
  kAuto = 0,
  kSpmm128x128Window = 1,
  kSpmm128x128Gather = 2,
  kSpmm64x64Window = 3,
  kSpmm64x64Gather = 4,
  kSpmm32x32Window = 5,
  kSpmm32x32Gather = 6,
  kSpmmMma128x128Window = 11,
  kSpmmMma128x128Gather = 12,
  kSpmmMma64x64Window = 13,
  kSpmmMma64x64Gather = 14,
  kSpmmFfma128x128Window = 15,
  kSpmmFfma128x128Gather = 16,
  kSpmmSkinny8 = 31,
  kSpmmSkinny16 = 32,
  kSpmmSkinny32 = 33,
  kSpmmSkinny64 = 34,
  kSpmmSkinnyBulk8 = 35,
  kSpmmSkinnyBulk16 = 36,
  kSpmmSkinnyBulk32 = 37,
  kSpmmSkinnyBulk64 = 38,
  kSpmmT4x16 = 21,
  kSpmmT2x16 = 22,
  kSpmmT1x16 = 23,
  kSpmmT4x8 = 24,
  kSddmm64x128Window = 41,
  kSddmm64x128Gather = 42,
  kSddmm32x32Window = 43,
  kSddmm32x32Gather = 44,
  kSpmmHopper256x128 = 62,
  kSpmmHopper128x128 = 63,
  kSpmmHopper64x128 = 64,
  kSpmmHopper256x64x2 = 65,
  kSpmmHopper128x64x2 = 66,
  kSpmmHopper64x64x2 = 67,
  kSpmmTHopper128 = 72,
  kSpmmTHopper64 = 73,
  kSpmmTHopper32 = 74,
  kSpmmTHopper16 = 75,
  kSpmmTHopper128HiLo = 76,
  kSpmmTHopper64HiLo = 77,
  kSpmmTHopper32HiLo = 78,
  kSpmmTHopper16HiLo = 79,
  kSddmmHopper256x128 = 82,
  kSddmmHopper128x128 = 83,
  kSddmmHopper64x128 = 84,
  kSddmmHopper128x64x2 = 86,
  kSddmmHopper64x64x2 = 87,
  kSpmmShort128x256 = 91,
  kSpmmSplit64x256 = 92,
  kSddmmSplit64x256 = 93,
  kSddmmSplit32x256 = 94,
  kSpmmTf32256x128 = 96,
  kSpmmTf32128x128 = 97,
  kSpmmTf32256x64x2 = 98,
  kSpmmTf32128x64x2 = 99,
};

struct Config {
  KernelId kernel;
  Staging staging;
  int32_t block_rows;
  int32_t block_cols;
  int32_t block_kept;
  int32_t block_windows;  // windows that block_kept slots touch at most
  int32_t thread_rows;    // the thread's tile of the block's two owned extents;
  int32_t thread_cols;    // the extent that is stepped over has 1 here
  int32_t thread_kept;
  int32_t threads;
  int32_t stages;          // depth of the shared-memory pipeline
  int32_t split;           // blocks that share one tile's reduction through the workspace
  int32_t groups_in_tile;  // groups that block_cols columns touch at most
  bool shared_group;       // all columns of one thread lie in one group
  int32_t group_cols;      // warps with roles: columns of one that surely lie in one group; else 0
  int32_t row_warps;       // spmm_t: warps along rows, and the windows of each warp
  int32_t warp_windows;
  int32_t warp_kept;     // spmm_t: slots that a warp multiplies at a time
  int32_t raster_cols;   // Hopper: column tiles that are walked before the next row tile
  int32_t blocks;        // Hopper: that the launch has, each of which walks over tiles
  int32_t shared_tiles;  // Hopper: tiles of which each is shared by the blocks of a cluster
  int32_t cluster;       // Hopper, skinny: the blocks of a cluster
  int32_t kept_warps;    // skinny: the groups of warps that take steps, or their slots, in turn
  int32_t x_warps;       // skinny, values in bulk: the warps that copy x
  int64_t shared_bytes;
};

constexpr int32_t CeilDiv(int32_t a, int32_t b) { return (a + b - 1) / b; }
constexpr int32_t RoundUp(int32_t a, int32_t b) { return CeilDiv(a, b) * b; }

// The most units of `unit` elements that `tile` consecutive elements touch when tiles start at
// multiples of `tile`.
constexpr int32_t UnitsTouched(int32_t tile, int32_t unit) {
  if (tile % unit == 0) return tile / unit;
  if (unit % tile == 0) return 1;
  return (tile + unit - 2) / unit + 1;
}

// ---- Tiles: the compile-time part of a configuration. ----

// spmm. A warp has 8 lanes along rows and 4 along columns. With thread_cols = 8 its tile is 32
// columns wide: for vector_length >= 32 the gathered row is then the same for the whole warp.
template <int kBlockRows_, int kBlockCols_, int kThreadRows_, int kThreadCols_, int kMinBlocks_>
struct SpmmTile {
  static constexpr int kBlockRows = kBlockRows_;
  static constexpr int kBlockCols = kBlockCols_;
  static constexpr int kThreadRows = kThreadRows_;
  static constexpr int kThreadCols = kThreadCols_;
  static constexpr int kMinBlocks = kMinBlocks_;  // per SM: bounds the registers of a thread
  static constexpr int kLaneRows = 8;
  static constexpr int kLaneCols = 4;
  static constexpr int kWarpRows = kLaneRows * kThreadRows;
  static constexpr int kWarpCols = kLaneCols * kThreadCols;
  static constexpr int kRowWarps = kBlockRows / kWarpRows;
  static constexpr int kWarps = kRowWarps * (kBlockCols / kWarpCols);
  static constexpr int kThreads = 32 * kWarps;
  static_assert(kBlockRows % kWarpRows == 0, "block rows must be whole warp tiles");
  static_assert(kBlockCols % kWarpCols == 0, "block columns must be whole warp tiles");
};
using SpmmLarge = SpmmTile<128, 128, 8, 8, 2>;
using SpmmMedium = SpmmTile<64, 64, 8, 4, 4>;
using SpmmSmall = SpmmTile<32, 32, 4, 4, 8>;

// spmm in float32 on CUDA cores, where some warps copy and the others multiply. A warp's 16-byte
// load takes 2 cycles of shared memory with lanes placed as above, and 4 otherwise: for a slot a
// warp with thread tiles of 16 x 8 loads 6 times, while its scheduler multiplies for 128 cycles.
using SpmmFfmaLarge = SpmmTile<128, 128, 16, 8, 2>;
constexpr int32_t kFfmaCopyThreads = 128;  // further threads of a block, which copy
constexpr int32_t kFfmaGroupCols = 32;     // a warp's columns, which lie in one group
constexpr bool IsFfma(KernelId kernel) {
  return kernel == KernelId::kSpmmFfma128x128Window || kernel == KernelId::kSpmmFfma128x128Gather;
}

// spmm on the tensor cores of a warp. What a warp reads of shared memory for its columns of one
// group is a row of x for each slot: a wide warp reads less of x, a tall one less of the values,
// and a square one, which needs groups of 64 columns, the least of both.
template <int kBlockRows_, int kBlockCols_, int kWarpRows_, int kWarpCols_, int kMinBlocks_>
struct SpmmMmaTile {
  static constexpr int kBlockRows = kBlockRows_;
  static constexpr int kBlockCols = kBlockCols_;
  static constexpr int kWarpRows = kWarpRows_;
  static constexpr int kWarpCols = kWarpCols_;
  static constexpr int kMinBlocks = kMinBlocks_;
  static constexpr int kRowWarps = kBlockRows / kWarpRows;
  static constexpr int kWarps = kRowWarps * (kBlockCols / kWarpCols);
  static constexpr int kThreads = 32 * kWarps;  // that multiply
  static_assert(kBlockRows % kWarpRows == 0, "block rows must be whole warp tiles");
  static_assert(kBlockCols % kWarpCols == 0, "block columns must be whole warp tiles");
  static_assert(kWarpRows % 32 == 0 && kWarpCols % 32 == 0, "results are stored 32 x 32 at a time");
  static_assert(kWarps == 4, "each scheduler of a multiprocessor has one warp that multiplies");
};
template <bool kSquare>
using SpmmMmaLarge = SpmmMmaTile<128, 128, kSquare ? 64 : 128, kSquare ? 64 : 32, 1>;
using SpmmMmaSmall = SpmmMmaTile<64, 64, 32, 32, 2>;
constexpr int32_t kMmaCopyThreads = 128;  // further threads of a block, which copy
constexpr int32_t kMmaBlocks = 2;         // on a multiprocessor, if warps can give registers away

// Its results pass through shared memory in pieces of 32 x 32, so that they are stored along the
// axis that is contiguous. Lines are padded by a vector.
constexpr int32_t kMmaPiece = 32;
constexpr int32_t kMmaPieceStride = kMmaPiece + 4;
constexpr int32_t kMmaPieceBytes = kMmaPiece * kMmaPieceStride * 4;

// sddmm. A warp has 4 lanes along slots and 8 along columns.
template <int kBlockKept_, int kBlockCols_, int kThreadKept_, int kThreadCols_, int kMinBlocks_>
struct SddmmTile {
  static constexpr int kBlockKept = kBlockKept_;
  static constexpr int kBlockCols = kBlockCols_;
  static constexpr int kThreadKept = kThreadKept_;
  static constexpr int kThreadCols = kThreadCols_;
  static constexpr int kMinBlocks = kMinBlocks_;
  static constexpr int kLaneKept = 4;
  static constexpr int kLaneCols = 8;
  static constexpr int kWarpKept = kLaneKept * kThreadKept;
  static constexpr int kWarpCols = kLaneCols * kThreadCols;
  static constexpr int kKeptWarps = kBlockKept / kWarpKept;
  static constexpr int kThreads = 32 * kKeptWarps * (kBlockCols / kWarpCols);
  static_assert(kBlockKept % kWarpKept == 0, "block slots must be whole warp tiles");
  static_assert(kBlockCols % kWarpCols == 0, "block columns must be whole warp tiles");
};
using SddmmLarge = SddmmTile<64, 128, 8, 8, 3>;
using SddmmSmall = SddmmTile<32, 32, 4, 4, 8>;

// spmm_t. A warp has kLaneRows lanes along rows, the others along slots, and owns all slots of its
// windows, kWarpKept at a time, so the sums of one row of dx are one warp's business and need no
// barrier of the block. Without lanes along slots every element of values goes to all 32 lanes, and
// reads of shared memory weigh more than the multiplications: spmm_t_1x16, 17 elements a lane for
// 16 multiplications, stays at 14 of 59 TFLOP/s (8:32 at 4096^3 on an H200), with 16 warps.
template <int kThreadRows_, int kThreadKept_, int kLaneRows_, int kMinBlocks_>
struct SpmmTTile {
  static constexpr int kThreadRows = kThreadRows_;
  static constexpr int kThreadKept = kThreadKept_;
  static constexpr int kLaneRows = kLaneRows_;
  static constexpr int kLaneKept = 32 / kLaneRows;
  static constexpr int kWarpRows = kLaneRows * kThreadRows;
  static constexpr int kWarpKept = kLaneKept * kThreadKept;
  static constexpr int kBlockCols = 32;
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = kMinBlocks_;  // of kMaxThreads, per SM
};
using SpmmT4x16 = SpmmTTile<4, 16, 32, 1>;
using SpmmT2x16 = SpmmTTile<2, 16, 32, 2>;
using SpmmT1x16 = SpmmTTile<1, 16, 32, 2>;
using SpmmT4x8 = SpmmTTile<4, 8, 8, 2>;

// ---- Shared memory: one description for the host, which sizes it, and the kernel. ----

// Sixteen bytes more than the rows of a tile: the transposing copy of a row-major operand, 8
// features by 4 rows per warp, then stores to 32 different banks.
constexpr int32_t PaddedRowBytes(int32_t rows, int32_t element_bytes) {
  return rows * element_bytes + 16;
}

// sddmm stages 64 bytes of rows per feature; the stride of five 16-byte units is odd, so 8
// consecutive features lie in different banks.
constexpr int32_t kSddmmRowBytes = 64;
constexpr int32_t kSlotUnroll = 4;  // spmm computes this many slots at a time

struct SharedLayout {
  int32_t first_stride;   // bytes between staged features of the first operand
  int32_t first_count;    // staged features of the first operand
  int32_t second_offset;  // from the start of a stage
  int32_t second_count;   // staged features (or slots) of the second operand
  int32_t stage_bytes;
  int32_t table_offset;  // of the decoded indices
  int32_t table_bytes;   // of one step
  int32_t tables;
  int32_t result_offset;  // spmm_t: the float32 tile of dx; tensor cores of a warp: the barriers
  int64_t bytes;
};

constexpr int32_t kMmaSlots = 16;  // slots of a product of tensor cores, or of two in TF32

// Slots per group in a table of decoded indices.
constexpr int32_t TableSlots(Op op, const Config& c) {
  if (op != Op::kSpmm) return c.block_kept;
  return RoundUp(c.block_kept, c.group_cols > 0 && !IsFfma(c.kernel) ? kMmaSlots : kSlotUnroll);
}

constexpr int32_t TableCount(int32_t stages) { return stages == 1 ? 1 : stages + 1; }

constexpr SharedLayout FinishLayout(SharedLayout s, int32_t stages, int64_t second_bytes,
                                    int64_t result_bytes) {
  const int64_t first_bytes = int64_t{s.first_stride} * s.first_count;
  const int64_t stage = first_bytes + second_bytes;
  const int64_t table_offset = stage * stages;
  const int64_t result_offset = table_offset + int64_t{s.table_bytes} * s.tables;
  s.bytes = result_offset + result_bytes;
  s.second_offset = static_cast<int32_t>(first_bytes);
  s.stage_bytes = static_cast<int32_t>(stage);
  s.table_offset = static_cast<int32_t>(table_offset);
  s.result_offset = static_cast<int32_t>(result_offset);
  return s;
}

constexpr SharedLayout MakeSharedLayout(Op op, const Config& c, int32_t m, int32_t element_bytes) {
  SharedLayout s{};
  const bool window = c.staging == Staging::kWindow;
  if (op == Op::kSpmm) {
    const int32_t slots = TableSlots(op, c);
    const bool roles = c.group_cols > 0;  // some warps copy, the others multiply
    // For tensor cores the 16-byte units of a line change places instead; on CUDA cores warps that
    // have roles read whole lines.
    s.first_stride =
        roles ? c.block_rows * element_bytes : PaddedRowBytes(c.block_rows, element_bytes);
    // In window mode one more row, always zero, is what the slots that hold nothing read.
    s.first_count = window ? c.block_windows * m + 1 : c.groups_in_tile * slots;
    s.second_count = slots;
    s.table_bytes = RoundUp(c.groups_in_tile * slots * (window ? 2 : 4), 16);
    s.tables = roles ? c.stages + 1 : TableCount(c.stages);
    // Behind the tables the barriers; what is read ahead of the last entries lies behind them.
    const int64_t ahead = IsFfma(c.kernel) ? c.block_cols * element_bytes : 64;
    const int64_t barrier_bytes = roles ? 16 * c.stages + ahead : 0;
    s = FinishLayout(s, c.stages, int64_t{slots} * c.block_cols * element_bytes, barrier_bytes);
    const int64_t pieces = int64_t{c.block_rows / kMmaPiece} * (c.block_cols / kMmaPiece);
    if (roles && !IsFfma(c.kernel) && s.bytes < pieces * kMmaPieceBytes)
      s.bytes = pieces * kMmaPieceBytes;
    return s;
  }
  if (op == Op::kSpmmT) {
    const int32_t warps_along_windows = c.threads / 32 / c.row_warps;
    const int32_t warp_kept = c.block_kept / warps_along_windows;
    s.first_stride = PaddedRowBytes(c.block_rows, element_bytes);
    s.first_count = c.block_cols;
    // The last warp reads whole chunks of slots; what lies beyond is not used.
    s.second_count = c.block_kept - warp_kept + RoundUp(warp_kept, c.warp_kept);
    s.table_bytes = RoundUp(c.groups_in_tile * c.block_kept * 2, 16);
    s.tables = TableCount(c.stages);
    // Padded, so that lanes along slots read different banks.
    const int32_t second_stride = PaddedRowBytes(c.block_cols, element_bytes);
    return FinishLayout(s, c.stages, int64_t{s.second_count} * second_stride,
                        int64_t{c.block_windows} * m * c.block_rows * 4);
  }
  s.first_stride = kSddmmRowBytes + 16;
  s.first_count = window ? c.block_windows * m : c.groups_in_tile * c.block_kept;
  s.second_count = c.block_cols;
  s.table_bytes = RoundUp(c.groups_in_tile * c.block_kept * (window ? 2 : 4), 16);
  s.tables = 1;
  return FinishLayout(s, c.stages, int64_t{s.first_stride} * s.second_count, 0);
}

}  // namespace jax_nm
