// What the kernels that stage whole windows of x have in common for the host that chooses: those
// for short vectors and those that split float32. Pure functions in plain C++.
#pragma once

#include <algorithm>
#include <vector>

#include "short_config.h"
#include "tuning.h"

namespace jax_nm {

// Columns of a warp that surely lie in one group: 8, 16 or 32; 0 if there are none.
inline int32_t WindowGroupCols(const Problem& p) {
  int32_t cols = kShortWarpCols;
  while (cols >= 8 && EffectiveVectorLength(p) % cols != 0) cols /= 2;
  return cols >= 8 ? cols : 0;
}

// The parts of a configuration that do not depend on the step.
inline Config WindowConfig(const Problem& p, KernelId kernel, int32_t block_cols) {
  Config c{};
  c.kernel = kernel;
  c.staging = Staging::kWindow;
  c.block_cols = block_cols;
  c.group_cols = WindowGroupCols(p);
  c.groups_in_tile = UnitsTouched(c.block_cols, EffectiveVectorLength(p));
  c.shared_group = true;
  c.threads = kHopperThreads;
  c.split = 1;
  c.cluster = 1;
  return c;
}

// As many stages as fit, or none if those are fewer than `least`.
inline void SetStages(const ShortLayout& layout, int32_t least, Config& c) {
  const int32_t room = (kHopperSharedBytes - 2 * kShortAlignment) / layout.stage_bytes;
  c.stages = room < least ? 0 : std::min(room, kShortMaxStages);
  c.shared_bytes = ShortSharedBytes(layout, c.stages);
}

// The steps of spmm that fit: whole windows whose slots are whole products, and at most
// `max_slots`.
template <class Tile>
std::vector<Config> WindowSteps(const Problem& p, KernelId kernel, int32_t max_slots) {
  std::vector<Config> configs;
  for (int32_t windows = 1; windows <= kShortDepth || windows * p.n <= max_slots; ++windows) {
    if (windows * p.m > kShortMaxLines || windows * p.n > max_slots) break;
    if (windows * p.n % kShortDepth != 0) continue;
    Config c = WindowConfig(p, kernel, Tile::kCols);
    c.block_rows = Tile::kRows;
    c.block_windows = windows;
    c.block_kept = windows * p.n;
    SetStages(MakeShortLayout<Tile>(windows * p.m, c.block_kept, c.group_cols), Tile::kMinStages,
              c);
    if (c.stages > 0) configs.push_back(c);
  }
  return configs;
}

}  // namespace jax_nm
