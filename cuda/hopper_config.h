// The tiles of the Hopper kernels and the values that describe a launch of them. Plain C++, for the
// host that chooses and for nvcc.
//
// A block owns a tile of the result and walks over the reduction. One producer warpgroup fills a
// ring of shared-memory stages; two consumer warpgroups multiply. Columns are the M side of the
// products, 64 for each consumer; the N side is rows in spmm and slots in sddmm. Operands lie in
// shared memory as lines of 128 bytes:
//
//   spmm   a line is 64 rows, or 64 columns, of one slot: M and N are contiguous
//   sddmm  a line is 64 rows of one slot, or of one column, in float32 32: the reduction is
//          contiguous, which is what wgmma wants of TF32
#pragma once

#include <cstdint>

#include "kernel_args.h"

namespace jax_nm {

constexpr int32_t kHopperConsumers = 2;                           // warpgroups
constexpr int32_t kHopperThreads = 128 * (1 + kHopperConsumers);  // and one that produces
constexpr int32_t kHopperSharedBytes = 227 << 10;                 // the most a block may ask for
constexpr int32_t kHopperLineBytes = 128;                         // a line of the 128-byte swizzle
constexpr int32_t kHopperLineElements = kHopperLineBytes / 2;
constexpr int32_t kHopperStagingBytes = 64 * kHopperLineBytes;  // one round of the epilogue
constexpr int32_t kHopperWarpCols = 16;                         // of a consumer's 64 columns
constexpr int32_t kHopperBlockSlots = 16;  // spmm_t: of a block of features, at most
constexpr int32_t kHopperMaxStages = 8;
constexpr uint32_t kHopperNoLine = UINT32_MAX;  // the offset, in 16 bytes, of a line of zeros

// The ring of stages and its barriers, in the shared memory behind kOffset.
template <int32_t kOffset, int32_t kStageBytes, int32_t kBarriers>
struct HopperRing {
  static constexpr int32_t kBarrierBytes = kBarriers * 8;
  static constexpr int32_t kRoom = kHopperSharedBytes - 1024 - kOffset - kBarrierBytes;
  static constexpr int32_t kStages =
      kRoom / kStageBytes < kHopperMaxStages ? kRoom / kStageBytes : kHopperMaxStages;
  static constexpr int32_t kBarrierOffset = kOffset + kStages * kStageBytes;
  static constexpr int32_t kSharedBytes = kBarrierOffset + kBarrierBytes + 1024;
  static_assert(kSharedBytes <= kHopperSharedBytes, "the stages fit in shared memory");
};

// kGroups = 2: each consumer has its own group and its own gathered lines; spmm then steps over
// half as many slots.
//
// N = 256 is what keeps wgmma's reads of shared memory (80 cycles of 128 for m64n256k16, 48 of 64
// for m64n128k16) and the copies into the next stage within what the memory can do.
template <Op kOp_, KernelId kId_, int32_t kBlockN_, int32_t kGroups_, int32_t kElementBytes_ = 2>
struct HopperTile {
  static constexpr Op kOp = kOp_;
  static constexpr KernelId kId = kId_;
  static constexpr bool kColsContiguous = kOp == Op::kSpmm;  // in the other operand
  static constexpr bool kWgmmaReadsX = true;  // and not the consumers, to hand it over in registers
  static constexpr int32_t kBlockN = kBlockN_;
  static constexpr int32_t kBlockCols = 64 * kHopperConsumers;
  static constexpr int32_t kGroups = kGroups_;
  static constexpr int32_t kGroupCols = kBlockCols / kGroups;
  static constexpr int32_t kElementBytes = kElementBytes_;
  static constexpr int32_t kChunkElements = 16 / kElementBytes;  // of a copy
  // Of the reduction: slots or rows.
  static constexpr int32_t kBlockDepth =
      kOp == Op::kSpmm ? 64 / kGroups : kHopperLineBytes / kElementBytes;
  static constexpr int32_t kWgmmaDepth = 32 / kElementBytes;

  // Gathered lines of a stage, and how many slabs of them a slot's elements span.
  static constexpr int32_t kLines = kOp == Op::kSpmm ? 64 : kBlockN * kGroups;
  static constexpr int32_t kLineSlabs = kOp == Op::kSpmm ? kBlockN / kHopperLineElements : 1;
  static constexpr int32_t kGroupLines = kLines / kGroups;
  static constexpr int32_t kXSlabBytes = kLines * kHopperLineBytes;
  static constexpr int32_t kXBytes = kLineSlabs * kXSlabBytes;

  // The other operand: a slab is the columns of a consumer.
  static constexpr int32_t kSlabLines = kOp == Op::kSpmm ? kBlockDepth : 64;
  static constexpr int32_t kSlabBytes = kSlabLines * kHopperLineBytes;
  static constexpr int32_t kSlabsBytes = kHopperConsumers * kSlabBytes;
  static constexpr int32_t kStageBytes = kXBytes + kSlabsBytes;

  // Each consumer has two staging buffers; the ring of stages begins at a multiple of 1024 bytes.
  static constexpr int32_t kRingOffset = kHopperConsumers * 2 * kHopperStagingBytes;
  using Ring = HopperRing<kRingOffset, kStageBytes, 2 * kHopperMaxStages>;
  static constexpr int32_t kStages = Ring::kStages;
  static constexpr int32_t kBarrierOffset = Ring::kBarrierOffset;
  static constexpr int32_t kSharedBytes = Ring::kSharedBytes;

  // Warps that fill a stage together. A warp that announces its lines waits for all of its copies,
  // also for those of later stages: where a stage is small that latency would set the pace, so that
  // there every warp fills stages of its own. Of the largest stages too few fit in shared memory.
  static constexpr int32_t kTeamWarps = kStages == 4 ? 4 : 1;
  static constexpr int32_t kTeams = 4 / kTeamWarps;
  // How many of its later stages a team fills before it announces one: what half of the ring holds.
  static constexpr int32_t kLag = kStages / (2 * kTeams) - (kTeams == 1 ? 1 : 0);

  // Of a thread after the roles have parted. Consumers of few sums need fewer.
  static constexpr int kProducerRegisters = kBlockN == 256 ? 72 : 104;
  static constexpr int kConsumerRegisters = kBlockN == 256 ? 216 : 200;

  // The sums that a block leaves where its ring was, for the other blocks of its cluster.
  static constexpr int32_t kSumsBytes = kBlockN * kBlockCols * 4;

  static_assert(128 * kProducerRegisters + 256 * kConsumerRegisters <= kHopperThreads * 168,
                "the launch has 168 registers for each of 384 threads");
  static_assert(kGroups == 1 || kGroups == 2, "a consumer has one group");
  static_assert(kBlockN == 64 || kBlockN == 128 || kBlockN == 256,
                "these widths of wgmma are wrapped");
  static_assert(kStages >= 4, "each of four warps may have a stage of its own");
  static_assert(kLag * kTeams <= kStages - 2,
                "consumers free a stage only after they have the next one");
  static_assert(kElementBytes == 2 || kOp == Op::kSddmm, "lines of spmm are 64 elements");
  static_assert(kBlockDepth % kWgmmaDepth == 0, "a step is whole wgmma steps");
  static_assert(kXSlabBytes % 1024 == 0 && kSlabBytes % 1024 == 0 && kRingOffset % 1024 == 0,
                "a slab is whole swizzle patterns");
  static_assert(kSumsBytes <= kStages * kStageBytes, "the sums fit in the ring");
};

using HopperSpmm256x128 = HopperTile<Op::kSpmm, KernelId::kSpmmHopper256x128, 256, 1>;
using HopperSpmm256x64x2 = HopperTile<Op::kSpmm, KernelId::kSpmmHopper256x64x2, 256, 2>;
using HopperSpmm128x128 = HopperTile<Op::kSpmm, KernelId::kSpmmHopper128x128, 128, 1>;
using HopperSpmm128x64x2 = HopperTile<Op::kSpmm, KernelId::kSpmmHopper128x64x2, 128, 2>;
using HopperSpmm64x128 = HopperTile<Op::kSpmm, KernelId::kSpmmHopper64x128, 64, 1>;
using HopperSpmm64x64x2 = HopperTile<Op::kSpmm, KernelId::kSpmmHopper64x64x2, 64, 2>;
using HopperSddmm256x128 = HopperTile<Op::kSddmm, KernelId::kSddmmHopper256x128, 256, 1>;
using HopperSddmm128x128 = HopperTile<Op::kSddmm, KernelId::kSddmmHopper128x128, 128, 1>;
using HopperSddmm128x64x2 = HopperTile<Op::kSddmm, KernelId::kSddmmHopper128x64x2, 128, 2>;
using HopperSddmm64x128 = HopperTile<Op::kSddmm, KernelId::kSddmmHopper64x128, 64, 1>;
using HopperSddmm64x64x2 = HopperTile<Op::kSddmm, KernelId::kSddmmHopper64x64x2, 64, 2>;

// The tile of a kernel for operands of another width: half as deep in float32.
template <class Tile, int32_t kElementBytes>
using HopperTileOf = HopperTile<Tile::kOp, Tile::kId, Tile::kBlockN, Tile::kGroups, kElementBytes>;

// spmm_t: dx = dy W^T. A block owns 128 rows by 256 features of dx, 64 rows of it a consumer's, in
// registers from the first group to the last. Rows are the M side. For each group of columns, first
//
//   partial[row, slot] = sum over its columns of dy[row, c] * values[slot, c]
//
// for the slots of the tile's windows, in steps of 64 columns; then, as a sum of kParts terms in
// bfloat16,
//
//   dx[row, feature] += partial[row, slot] * one_hot[slot, feature]
//
// where the one-hot matrix says which feature a slot holds. 16 slots, the depth of one wgmma, hold
// features of one block of 256 * 16 / kSlots, so the second product costs as much as another 4096 /
// kSlots columns of the first, for each part.
//
// One part has 8 bits of a partial sum. A second one has 8 of what the first left, so that together
// they are off by at most 2^-16 of the sum, and hold integers up to 2^17. In float16, which has
// more bits than one part and less range than partial sums need, there are always two.
//
// With two parts a block of features may also have fewer slots of the weight than 16: behind them
// lie slots of the next block, which the one-hot matrix leaves out.
template <KernelId kId_, int32_t kSlots_, int32_t kParts_>
struct HopperScatterTile {
  static constexpr KernelId kId = kId_;
  static constexpr int32_t kBlockRows = 64 * kHopperConsumers;
  static constexpr int32_t kBlockFeatures = 256;
  static constexpr int32_t kSlots = kSlots_;
  static constexpr int32_t kParts = kParts_;
  static constexpr bool kFullBlocks = kParts == 1;  // each holds 16 slots of the weight
  static constexpr int32_t kStepCols = kHopperLineElements;

  // Lines of dy are 64 rows of a column, a slab for each consumer; lines of the values 64 columns
  // of a slot.
  static constexpr int32_t kDySlabBytes = kStepCols * kHopperLineBytes;
  static constexpr int32_t kXBytes = kHopperConsumers * kDySlabBytes;
  static constexpr int32_t kValuesBytes = kSlots * kHopperLineBytes;
  static constexpr int32_t kStageBytes = kXBytes + kValuesBytes;

  // Two one-hot matrices, so that one is built while the other is read: a line for each slot in
  // each slab of 64 features, or of 32 where a block has no more.
  static constexpr int32_t kBlocks = kSlots / kHopperBlockSlots;
  static constexpr int32_t kFeatures = kBlockFeatures / kBlocks;  // of a block
  static constexpr int32_t kOneHotBlockBytes = 16 * kFeatures * 2;
  static constexpr int32_t kOneHotBytes = kBlocks * kOneHotBlockBytes;
  static constexpr int32_t kOneHots = 2;

  static constexpr int32_t kOneHotOffset = kHopperConsumers * 2 * kHopperStagingBytes;
  static constexpr int32_t kRingOffset = kOneHotOffset + kOneHots * kOneHotBytes;
  using Ring = HopperRing<kRingOffset, kStageBytes, 2 * (kHopperMaxStages + kOneHots)>;
  static constexpr int32_t kStages = Ring::kStages;
  static constexpr int32_t kBarrierOffset = Ring::kBarrierOffset;
  static constexpr int32_t kSharedBytes = Ring::kSharedBytes;

  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  static_assert(128 * kProducerRegisters + 256 * kConsumerRegisters <= kHopperThreads * 168,
                "the launch has 168 registers for each of 384 threads");
  static_assert(kFeatures == 32 || kFeatures % 64 == 0, "these lines of one-hots are laid out");
  static_assert(kOneHotBytes % 1024 == 0 && kValuesBytes % 1024 == 0 && kRingOffset % 1024 == 0,
                "operands begin at whole swizzle patterns");
  static_assert(kStages >= 4, "the copies of a step have three steps' time");
};

using HopperScatter128 = HopperScatterTile<KernelId::kSpmmTHopper128, 128, 1>;
using HopperScatter64 = HopperScatterTile<KernelId::kSpmmTHopper64, 64, 1>;
using HopperScatter32 = HopperScatterTile<KernelId::kSpmmTHopper32, 32, 1>;
using HopperScatter16 = HopperScatterTile<KernelId::kSpmmTHopper16, 16, 1>;
using HopperScatter128HiLo = HopperScatterTile<KernelId::kSpmmTHopper128HiLo, 128, 2>;
using HopperScatter64HiLo = HopperScatterTile<KernelId::kSpmmTHopper64HiLo, 64, 2>;
using HopperScatter32HiLo = HopperScatterTile<KernelId::kSpmmTHopper32HiLo, 32, 2>;
using HopperScatter16HiLo = HopperScatterTile<KernelId::kSpmmTHopper16HiLo, 16, 2>;

// Whether the blocks of a cluster may share a tile: with float32 results, the consumers of the
// largest tiles have no registers left for that.
constexpr bool HopperShares(int32_t block_n, int32_t result_bytes) {
  return block_n < 256 || result_bytes == 2;
}

// Larger clusters take longer to meet than they save.
constexpr int32_t kHopperMaxCluster = 4;

// In spmm_t rows take the place of N, and features that of columns.
struct HopperCoordinates {
  int32_t batch;
  int32_t n_tile;
  int32_t col_tile;
};

// The order of the tiles. Columns run fastest inside bands of `band_cols` column tiles: the tiles
// in flight then read few panels of x and few of the other operand, which L2 holds while they walk
// over the reduction in step.
struct HopperRaster {
  int32_t per_batch;
  int32_t per_band;
  int32_t band_cols;
  int32_t last_band;
  int32_t last_cols;  // of the last band, which may be narrower
  Divisor by_batch;
  Divisor by_band;
  Divisor by_band_cols;
  Divisor by_last_cols;

  constexpr HopperCoordinates Locate(int32_t tile) const {
    const int32_t batch = by_batch.Quotient(tile);
    const int32_t within = tile - batch * per_batch;
    const int32_t band = by_band.Quotient(within);
    const int32_t in_band = within - band * per_band;
    const bool last = band == last_band;
    const int32_t n = last ? by_last_cols.Quotient(in_band) : by_band_cols.Quotient(in_band);
    const int32_t col = in_band - n * (last ? last_cols : band_cols);
    return {batch, n, band * band_cols + col};
  }
};

// What the kernel receives by value beside its tensor maps.
struct HopperArgs {
  const void* x;  // [batch, depth, rows]
  const uint8_t* indices;
  const float* bias;  // [batch, cols], or null
  int64_t x_batch_bytes;
  int64_t indices_batch;
  int32_t rows;
  int32_t cols;
  int32_t depth;
  int32_t kept;
  int32_t valid_kept;  // slots before the padding of a ragged last window
  int32_t groups;
  int32_t m;
  Divisor by_vector_length;
  Divisor by_n;
  int32_t steps;        // of the whole reduction
  int32_t group_steps;  // spmm_t: of those, the ones of a group
  HopperRaster raster;
  int32_t tiles;        // of the whole launch
  int32_t whole_tiles;  // of which each is one block's; the others are shared by a cluster
  int32_t cluster;      // its blocks
  Divisor by_cluster;
  Divisor by_blocks;  // of the launch
  bool result_feature_major;
  bool emits_sum;
  Activation activation;
  int32_t block_slots;  // spmm_t: of each block of features
};

}  // namespace jax_nm
