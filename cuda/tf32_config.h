// The tiles of spmm in TF32 on Hopper. Plain C++, for the host that chooses and for nvcc.
//
// A wgmma in 32 bits reads shared memory along the reduction alone, so the values come transposed.
// x, of which a slot's rows are contiguous, passes through the registers of the consumers instead:
// rows are the M side of the products, and columns the N side.
#pragma once

#include "hopper_config.h"

namespace jax_nm {

constexpr int32_t kTf32WarpRows = 32;  // which a line of 128 bytes holds
constexpr int32_t kTf32UnitLines = 8;  // the reduction of a wgmma
constexpr int32_t kTf32Units = 4;      // of a consumer, in a stage

// Of 256 rows a consumer has 128, and all columns; of 128 rows it has all, and 64 columns. With
// N = 128, for the products of 32 slots (1024 cycles) wgmma reads 64 KB of shared memory and the
// consumers 32, while 48 KB arrive: 1152 cycles of it.
template <KernelId kId_, int32_t kBlockN_, int32_t kGroups_>
struct Tf32Tile {
  static constexpr Op kOp = Op::kSpmm;
  static constexpr KernelId kId = kId_;
  static constexpr int32_t kElementBytes = 4;
  static constexpr int32_t kChunkElements = 16 / kElementBytes;  // of a copy
  static constexpr bool kColsContiguous = false;
  static constexpr bool kWgmmaReadsX = false;
  static constexpr int32_t kBlockN = kBlockN_;  // rows
  static constexpr int32_t kBlockCols = 128;
  static constexpr int32_t kGroups = kGroups_;
  static constexpr int32_t kGroupCols = kBlockCols / kGroups;
  static constexpr bool kSplitsRows = kBlockN == 256;  // between the consumers
  static constexpr int32_t kConsumerCols = kSplitsRows ? 128 : 64;
  static constexpr int32_t kConsumerGroups = kSplitsRows ? kGroups : 1;
  static constexpr int32_t kWgmmaN = kConsumerCols / kConsumerGroups;

  // Gathered lines of a stage, and how many slabs of 128 bytes a slot's elements span.
  static constexpr int32_t kConsumerLines = kTf32Units * kTf32UnitLines;
  static constexpr int32_t kBlockDepth = kConsumerLines / kConsumerGroups;
  static constexpr int32_t kLines = kBlockDepth * kGroups;
  static constexpr int32_t kGroupLines = kBlockDepth;
  static constexpr int32_t kLineSlabs = kBlockN / kTf32WarpRows;
  static constexpr int32_t kXSlabBytes = kLines * kHopperLineBytes;
  static constexpr int32_t kXBytes = kLineSlabs * kXSlabBytes;

  // A line of the values is the slots of a column; two slabs are all columns.
  static constexpr int32_t kValuesLineBytes = kBlockDepth * kElementBytes;
  static constexpr int32_t kSlabBytes = kBlockCols / 2 * kValuesLineBytes;
  static constexpr int32_t kSlabsBytes = 2 * kSlabBytes;
  static constexpr int32_t kStageBytes = kXBytes + kSlabsBytes;

  static constexpr int32_t kRingOffset = kHopperConsumers * 2 * kHopperStagingBytes;
  using Ring = HopperRing<kRingOffset, kStageBytes, 2 * kHopperMaxStages>;
  static constexpr int32_t kStages = Ring::kStages;
  static constexpr int32_t kBarrierOffset = Ring::kBarrierOffset;
  static constexpr int32_t kSharedBytes = Ring::kSharedBytes;

  // Four warps fill every stage together. None waits for its copies.
  static constexpr int32_t kTeamWarps = 4;
  static constexpr int32_t kTeams = 1;
  static constexpr int32_t kLag = 0;

  static constexpr int kProducerRegisters = 56;
  static constexpr int kConsumerRegisters = 224;

  static constexpr int32_t kSumsBytes = kBlockN * kBlockCols * 4;

  static_assert(128 * kProducerRegisters + 256 * kConsumerRegisters <= kHopperThreads * 168,
                "the launch has 168 registers for each of 384 threads");
  static_assert(kBlockN == 128 || kBlockN == 256, "a warp has 32 rows");
  static_assert(kGroups == 1 || kGroups == 2, "the values of a group are whole slabs");
  static_assert(kValuesLineBytes == 64 || kValuesLineBytes == 128, "these swizzles are used");
  static_assert(kStages >= 4, "consumers hold two stages while two are filled");
  static_assert(kSlabBytes % 1024 == 0 && kRingOffset % 1024 == 0,
                "a slab is whole swizzle patterns");
  static_assert(kSumsBytes <= kStages * kStageBytes, "the sums fit in the ring");
};

using Tf32Spmm256x128 = Tf32Tile<KernelId::kSpmmTf32256x128, 256, 1>;
using Tf32Spmm128x128 = Tf32Tile<KernelId::kSpmmTf32128x128, 128, 1>;
using Tf32Spmm256x64x2 = Tf32Tile<KernelId::kSpmmTf32256x64x2, 256, 2>;
using Tf32Spmm128x64x2 = Tf32Tile<KernelId::kSpmmTf32128x64x2, 128, 2>;

struct Tf32Args {
  HopperArgs hopper;
  float* result;
  float* sum;  // before the activation, if it is asked for
};

}  // namespace jax_nm
