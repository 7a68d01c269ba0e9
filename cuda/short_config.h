// The tiles of the kernels for short vectors on Hopper and what lies in their shared memory. Plain
// C++, for the host that chooses and for nvcc.
#pragma once

#include <cstdint>

#include "config.h"
#include "hopper_config.h"

namespace jax_nm {

constexpr int32_t kShortWarps = 8;     // that multiply, side by side
constexpr int32_t kShortDecoders = 3;  // warps that decode indices
constexpr int32_t kShortSlots = 16;    // of a product
constexpr int32_t kShortMaxBox = 256;  // lines of a box of TMA
constexpr int32_t kShortMinStages = 2;

// A warp multiplies all rows of the block by its own kWarpCols columns.
template <KernelId kId_, int32_t kSlabs_, int32_t kWarpCols_>
struct ShortTile {
  static constexpr KernelId kId = kId_;
  static constexpr int32_t kSlabs = kSlabs_;  // of 64 rows, a line of shared memory
  static constexpr int32_t kWarpCols = kWarpCols_;
  static constexpr int32_t kBlockRows = kSlabs * kHopperLineElements;
  static constexpr int32_t kBlockCols = kWarpCols * kShortWarps;

  // Of a thread after the roles have parted. Consumers of few sums need fewer.
  static constexpr bool kFewSums = kBlockRows * kBlockCols < 128 * 256;
  static constexpr int kProducerRegisters = kFewSums ? 72 : 56;
  static constexpr int kConsumerRegisters = kFewSums ? 216 : 224;
  static_assert(128 * kProducerRegisters + 256 * kConsumerRegisters <= kHopperThreads * 168,
                "the launch has 168 registers for each of 384 threads");
  static_assert(kWarpCols % 32 == 0 && kHopperLineElements % kWarpCols == 0,
                "four products are a vector of a row-major result, a line is whole warps");
};

using Short128x256 = ShortTile<KernelId::kSpmmShort128x256, 2, 32>;
using Short64x512 = ShortTile<KernelId::kSpmmShort64x512, 1, 64>;
using Short64x256 = ShortTile<KernelId::kSpmmShort64x256, 1, 32>;

// A stage holds, in lines of 128 bytes with the 128-byte swizzle, slabs of 64 rows of all features
// of its windows, then slabs of 64 columns of the values. Its table says for every slot of every
// `group_cols` columns where the slot's line of x is. Where the slots of a stage are not whole
// products, the lines of values behind them and one line behind the features are zeros.
struct ShortLayout {
  int32_t slots;        // of a stage
  int32_t whole_slots;  // of whole products
  int32_t features;
  int32_t x_slab_bytes;
  int32_t values_offset;  // from the start of a stage
  int32_t values_slab_bytes;
  int32_t stage_bytes;
  int32_t copied_bytes;  // of those, by TMA
  int32_t chunk_bytes;   // of the table of `group_cols` columns
  int32_t table_offset;  // from the start of shared memory
  int32_t table_bytes;   // of a stage
  int32_t barrier_offset;
  int32_t shared_bytes;

  constexpr bool HasPadding() const { return whole_slots != slots; }
};

// Reads the blocks, the stages and `group_cols` of the configuration.
constexpr ShortLayout MakeShortLayout(const Config& c, int32_t m) {
  constexpr int32_t kPattern = 8 * kHopperLineBytes;  // which the swizzle repeats
  const int32_t x_slabs = c.block_rows / kHopperLineElements;
  const int32_t value_slabs = c.block_cols / kHopperLineElements;
  ShortLayout s{};
  s.slots = c.block_kept;
  s.whole_slots = RoundUp(s.slots, kShortSlots);
  s.features = c.block_windows * m;
  const int32_t zero_lines = s.HasPadding() ? 1 : 0;
  s.x_slab_bytes = RoundUp((s.features + zero_lines) * kHopperLineBytes, kPattern);
  s.values_offset = x_slabs * s.x_slab_bytes;
  s.values_slab_bytes = s.whole_slots * kHopperLineBytes;
  s.stage_bytes = s.values_offset + value_slabs * s.values_slab_bytes;
  s.copied_bytes = (x_slabs * s.features + value_slabs * s.slots) * kHopperLineBytes;
  s.chunk_bytes = s.whole_slots * 2;
  s.table_offset = c.stages * s.stage_bytes;
  s.table_bytes = c.block_cols / c.group_cols * s.chunk_bytes;
  s.barrier_offset = s.table_offset + c.stages * s.table_bytes;
  // Two barriers for a stage; the base is rounded up to a pattern.
  s.shared_bytes = s.barrier_offset + c.stages * 16 + kPattern;
  return s;
}

// What the kernels receive by value beside their tensor maps.
struct ShortArgs {
  HopperArgs common;
  ShortLayout layout;
  Divisor by_quads;    // four slots each, of a group in the table of a stage
  int32_t group_cols;  // columns that surely lie in one group
  int32_t stages;
  int32_t units;  // products along the slots of a stage
  void* result;
  void* sum;           // before the activation; null if not asked for
  bool result_vector;  // row-major: lines begin at whole vectors
};

}  // namespace jax_nm
