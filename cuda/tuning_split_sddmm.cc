#include "tuning_split_sddmm.h"

#include <algorithm>

#include "split_config.h"
#include "tuning_hopper.h"
#include "tuning_split.h"

namespace jax_nm {
namespace {

constexpr int64_t kMaxDimension = int64_t{1} << 29;
constexpr int64_t kMaxStride = int64_t{1} << 40;  // of a tensor map, in bytes
constexpr int64_t kMaxTiles = int64_t{1} << 30;

// Without stages if two do not fit.
Config TileOf(const Problem& p, KernelId kernel) {
  const int64_t windows = CeilDiv64(p.depth, p.m);
  Config c{};
  c.kernel = kernel;
  c.staging = Staging::kWindow;
  c.block_rows = kSplitSddmmRows;
  c.block_cols = kSplitCols;
  c.block_kept = kernel == KernelId::kSddmmSplit64x256 ? 64 : 32;
  c.block_windows =
      static_cast<int32_t>(std::min<int64_t>(UnitsTouched(c.block_kept, p.n), windows));
  c.group_cols = SplitGroupCols(p);
  c.groups_in_tile = UnitsTouched(c.block_cols, EffectiveVectorLength(p));
  c.shared_group = true;
  c.threads = kHopperThreads;
  c.split = 1;
  c.cluster = 1;
  const ShortLayout layout = MakeSplitSddmmLayout(c.block_windows * p.m);
  const int32_t room = (kHopperSharedBytes - 2 * kShortAlignment) / layout.stage_bytes;
  c.stages = room < kSplitMinStages ? 0 : std::min(room, kShortMaxStages);
  c.shared_bytes = ShortSharedBytes(layout, c.stages);
  return c;
}

int64_t TilesOf(const Problem& p, const Config& c) {
  const TileCounts tiles = Tiles(p, c);
  return p.batch * tiles.outer * tiles.inner;
}

}  // namespace

std::string SplitSddmmReason(const Problem& p, KernelId kernel) {
  if (p.dtype != DType::kFloat32) return "splits float32, got operands in half precision";
  if (p.x_layout != Layout::kFeatureMajor) return "needs a feature-major x, got a row-major one";
  if (p.y_layout != Layout::kFeatureMajor) return "needs a feature-major dy, got a row-major one";
  if (p.batch == 0 || p.rows == 0 || p.cols == 0 || p.depth == 0) {
    return "needs something to multiply, got an empty operand";
  }
  if (SplitGroupCols(p) == 0) {
    return "needs a vector_length that is a multiple of 8 or spans all columns, got " +
           std::to_string(p.vector_length);
  }
  if (p.rows % 4 != 0) {
    return "needs rows of whole 16 bytes, got " + std::to_string(p.rows) + " of them";
  }
  if (std::max({p.rows, p.depth, p.cols, p.kept, p.batch}) > kMaxDimension ||
      p.depth * p.rows * 4 >= kMaxStride || p.cols * p.rows * 4 >= kMaxStride) {
    return "needs dimensions that tensor maps and 32-bit offsets hold";
  }
  const Config c = TileOf(p, kernel);
  if (c.stages == 0) {
    return "needs windows of which two stages fit in shared memory, got " +
           std::to_string(c.block_windows * p.m) + " features for " + std::to_string(c.block_kept) +
           " slots";
  }
  if (TilesOf(p, c) > kMaxTiles) return "needs at most " + std::to_string(kMaxTiles) + " tiles";
  return "";
}

std::vector<Config> SplitSddmmConfigs(const Problem& p, KernelId kernel, const Device& device) {
  Config c = TileOf(p, kernel);
  const int64_t tiles = TilesOf(p, c);
  c.blocks = static_cast<int32_t>(std::min<int64_t>(tiles, device.num_sms));
  c.raster_cols = RasterCols(Tiles(p, c), 4.0 * c.block_windows * p.m * double(p.rows),
                             4.0 * kSplitCols * double(p.rows), device.num_sms);
  std::vector<Config> configs{c};
  for (int32_t cluster = 2; cluster <= kHopperMaxCluster; ++cluster) {
    const int32_t most = BlocksInClusters(device.num_sms, cluster);
    // Every block of a cluster has a step.
    if (most == 0 || Steps(p, c) < cluster) break;
    c.cluster = cluster;
    c.shared_tiles = static_cast<int32_t>(tiles % most);
    c.blocks = static_cast<int32_t>(std::min<int64_t>(tiles * cluster, most));
    if (c.shared_tiles > 0) configs.push_back(c);
  }
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
  constexpr double kShare = 1500.0, kPeerBytes = 14.0;  // as in HopperCycles
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
  const double sums_bytes = SplitSumsBytes(c.block_kept);
  const double share = kShare + sums_bytes * (c.cluster - 1) / c.cluster / kPeerBytes;
  return kLaunch +
         double(CeilDiv64(TilesOf(p, c) - c.shared_tiles, c.blocks)) * (steps * step + kTile) +
         double(CeilDiv64(c.shared_tiles, c.blocks / c.cluster)) *
             (CeilDiv64(steps, c.cluster) * step + kTile + share);
}

}  // namespace jax_nm
