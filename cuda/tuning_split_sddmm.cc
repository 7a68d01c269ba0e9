#include "tuning_split_sddmm.h"

#include <algorithm>

#include "split_config.h"
#include "tuning_hopper.h"
#include "tuning_split.h"
#include "tuning_windows.h"

namespace jax_nm {
namespace {

// Without stages if two do not fit.
Config TileOf(const Problem& p, KernelId kernel) {
  const int64_t windows = CeilDiv64(p.depth, p.m);
  Config c = WindowConfig(p, kernel, kSplitCols);
  c.block_rows = kSplitSddmmRows;
  c.block_kept = kernel == KernelId::kSddmmSplit64x256 ? 64 : 32;
  c.block_windows =
      static_cast<int32_t>(std::min<int64_t>(UnitsTouched(c.block_kept, p.n), windows));
  SetStages(MakeSplitSddmmLayout(c.block_windows * p.m), kSplitMinStages, c);
  return c;
}

int64_t TilesOf(const Problem& p, const Config& c) {
  const TileCounts tiles = Tiles(p, c);
  return p.batch * tiles.outer * tiles.inner;
}

}  // namespace

std::string SplitSddmmReason(const Problem& p, KernelId kernel) {
  const std::string reason = SplitOperandsReason(p);
  if (!reason.empty()) return reason;
  if (std::max({p.rows, p.depth, p.cols, p.kept, p.batch}) > kHopperMaxDimension ||
      p.depth * p.rows * 4 >= kHopperMaxStride || p.cols * p.rows * 4 >= kHopperMaxStride) {
    return "needs dimensions that tensor maps and 32-bit offsets hold";
  }
  const Config c = TileOf(p, kernel);
  if (c.stages == 0) {
    return "needs windows of which two stages fit in shared memory, got " +
           std::to_string(c.block_windows * p.m) + " features for " + std::to_string(c.block_kept) +
           " slots";
  }
  if (TilesOf(p, c) > kHopperMaxTiles)
    return "needs at most " + std::to_string(kHopperMaxTiles) + " tiles";
  return "";
}

std::vector<Config> SplitSddmmConfigs(const Problem& p, KernelId kernel, const Device& device) {
  Config c = TileOf(p, kernel);
  const int64_t tiles = TilesOf(p, c);
  c.blocks = static_cast<int32_t>(std::min<int64_t>(tiles, device.num_sms));
  c.raster_cols = RasterCols(Tiles(p, c), 4.0 * c.block_windows * p.m * double(p.rows),
                             4.0 * kSplitCols * double(p.rows), device.num_sms);
  std::vector<Config> configs{c};
  AddSharedLaunches(p, c, tiles, device.num_sms, configs);
  return configs;
}

// As SplitCycles, of whose kernel the parts are the same. Chosen to follow an H200, taking 1.755
// GHz for its clock: of 216 launches (4096 cubed, 4096, 12288, 4096, 1024, 4096, 4096, 2048 cubed,
// 512, 5120, 5120, 256, 4096, 4096; 24:32 to 2:32; L = 8 to 128; all clusters) the times are 0.94
// to 1.08 of it for 64 slots and 0.86 to 1.15 for 32, the least with 256 rows.
double SplitSddmmCycles(const Problem& p, const Config& c) {
  constexpr double kProducts = 850.0;     // of mma.sync beside splitting and reads, a cycle
  constexpr double kIngressBytes = 52.0;  // from L2, a cycle and SM
  constexpr double kSharedBytes = 128.0;  // a cycle
  constexpr double kConflicts = 1.5;      // of lines picked from a window
  constexpr double kIssueShare = 0.56;    // of the cycles of a scheduler
  constexpr double kFewSlots = 1.05;      // of a tile of 32
  constexpr double kStep = 150.0, kTile = 6000.0, kLaunch = 4800.0;
  const double tile = double(c.block_kept) * kSplitCols;
  const double copied = MakeSplitSddmmLayout(c.block_windows * p.m).stage_bytes;
  const double x_read = tile / c.group_cols * kHopperLineBytes;
  const double dy_read = double(kSplitCols) * kHopperLineBytes;
  // Instructions of a warp for a step, of which a scheduler has two.
  const double issued =
      2.0 * (190.0 + c.block_kept / 16 * (64.0 + 100.0 * kSplitWarpCols / c.group_cols));
  const double few = c.block_kept == 32 ? kFewSlots : 1.0;
  const double busy = few * std::max({6.0 * tile * kSplitSddmmRows / kProducts,
                                      issued / kIssueShare, copied / kIngressBytes,
                                      (x_read * kConflicts + dy_read + copied) / kSharedBytes});
  const double step = busy + kStep;
  const int64_t steps = Steps(p, c);
  return kLaunch + WalkCycles(c, TilesOf(p, c), steps * step, CeilDiv64(steps, c.cluster) * step,
                              kTile, SplitSumsBytes(c.block_kept));
}

}  // namespace jax_nm
