// The tile of the kernel that computes spmm in float32 by six products in bfloat16. Plain C++, for
// the host that chooses and for nvcc.
#pragma once

#include "short_config.h"

namespace jax_nm {

constexpr int32_t kSplitRows = 64;  // of a block, and of each warp
constexpr int32_t kSplitCols = 256;
constexpr int32_t kSplitWarpCols = kSplitCols / kShortWarps;
constexpr int32_t kSplitMinStages = 2;

// Lines of 128 bytes are 32 rows of a feature, or the 32 columns of a warp of a slot.
struct SplitTile {
  static constexpr int32_t kRows = kSplitRows;
  static constexpr int32_t kCols = kSplitCols;
  static constexpr int32_t kLineElements = kHopperLineBytes / 4;
  static constexpr int32_t kRowSlabs = kRows / kLineElements;
  static constexpr int32_t kColSlabs = kCols / kLineElements;
  static constexpr int32_t kMinStages = kSplitMinStages;
  static constexpr bool kShares = true;
  static_assert(kLineElements == kSplitWarpCols, "a slab of the values is a warp's");
};

// What a block leaves in its ring for the other blocks of its cluster.
constexpr int32_t kSplitSumsBytes = kSplitRows * kSplitCols * 4;

}  // namespace jax_nm
