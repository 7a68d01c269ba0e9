// The tile of the kernel for short vectors on Hopper, what lies in its shared memory and what it
// receives. Plain C++, for the host that chooses and for nvcc.
//
// Where vectors are short, a tile has too many groups to stage what each of them picks. A stage
// holds the whole windows of x instead, once for all groups of the tile; a warp picks from there on
// the way to its registers and multiplies by mma.sync.
#pragma once

#include <cstdint>

#include "hopper_config.h"

namespace jax_nm {

constexpr int32_t kShortRows = 128;  // of a block, and of each warp
constexpr int32_t kShortCols = 256;
constexpr int32_t kShortWarps = 8;  // that multiply
constexpr int32_t kShortWarpCols = kShortCols / kShortWarps;
constexpr int32_t kShortDepth = 16;  // slots of a product
constexpr int32_t kShortMaxStages = 8;
// A decoder skips the steps of the others. With fewer stages than decoders it could wait for a
// stage whose last but one round is still being read, of which the parity is the same.
constexpr int32_t kShortMinStages = 3;
constexpr int32_t kShortMaxLines = 256;  // features of a stage: a table entry is a byte
constexpr int32_t kShortAlignment = 1024;
constexpr int32_t kShortDecoders = 3;  // warps that decode indices, for a step each in turn

// What the producers need to know of a tile.
struct ShortTile {
  static constexpr int32_t kRows = kShortRows;
  static constexpr int32_t kCols = kShortCols;
  static constexpr int32_t kLineElements = kHopperLineBytes / 2;
  static constexpr int32_t kRowSlabs = kRows / kLineElements;
  static constexpr int32_t kColSlabs = kCols / kLineElements;
  static constexpr int32_t kMinStages = kShortMinStages;
  static constexpr bool kShares = false;  // the blocks of a cluster may share a tile
};

// A stage: slabs of 64 rows of x, a line of 128 bytes for each feature; slabs of 64 columns of the
// values, a line for each slot; and for each 16 slots and group of a warp the lines that its slots
// pick, as bytes in the order in which lanes hold an operand.
struct ShortLayout {
  int32_t x_slab_bytes;
  int32_t values_offset;
  int32_t values_slab_bytes;
  int32_t table_offset;
  int32_t stage_bytes;
};

template <class Tile = ShortTile>
constexpr ShortLayout MakeShortLayout(int32_t features, int32_t slots, int32_t group_cols) {
  ShortLayout s{};
  s.x_slab_bytes = RoundUp(features, 8) * kHopperLineBytes;
  s.values_offset = Tile::kRowSlabs * s.x_slab_bytes;
  s.values_slab_bytes = slots * kHopperLineBytes;
  s.table_offset = s.values_offset + Tile::kColSlabs * s.values_slab_bytes;
  s.stage_bytes = RoundUp(s.table_offset + Tile::kCols / group_cols * slots, kShortAlignment);
  return s;
}

// Dynamic shared memory need not begin at a multiple of the alignment; the barriers come first.
constexpr int32_t ShortSharedBytes(const ShortLayout& layout, int32_t stages) {
  return 2 * kShortAlignment + stages * layout.stage_bytes;
}

struct ShortArgs {
  HopperArgs hopper;
  void* result;
  void* sum;         // before the activation, if it is asked for
  int32_t slots;     // of a step, a multiple of kShortDepth
  int32_t windows;   // that hold them
  int32_t features;  // of these windows
  int32_t stages;
  ShortLayout layout;
};

}  // namespace jax_nm
