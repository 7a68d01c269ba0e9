#include "tuning_split.h"

#include <algorithm>

#include "split_config.h"
#include "tuning_hopper.h"
#include "tuning_windows.h"

namespace jax_nm {
namespace {

constexpr int32_t kMaxSlots = 64;

std::vector<Config> StepsThatFit(const Problem& p) {
  return WindowSteps<SplitTile>(p, KernelId::kSpmmSplit64x256, kMaxSlots);
}

int64_t TilesOf(const Problem& p) {
  return p.batch * CeilDiv64(p.rows, kSplitRows) * CeilDiv64(p.cols, kSplitCols);
}

}  // namespace

std::string SplitOperandsReason(const Problem& p) {
  if (p.dtype != DType::kFloat32) return "splits float32, got operands in half precision";
  if (p.x_layout != Layout::kFeatureMajor) return "needs a feature-major x, got a row-major one";
  if (p.op == Op::kSddmm && p.y_layout != Layout::kFeatureMajor) {
    return "needs a feature-major dy, got a row-major one";
  }
  if (p.batch == 0 || p.rows == 0 || p.cols == 0 || p.depth == 0) {
    return "needs something to multiply, got an empty operand";
  }
  if (WindowGroupCols(p) == 0) {
    return "needs a vector_length that is a multiple of 8 or spans all columns, got " +
           std::to_string(p.vector_length);
  }
  if (p.rows % 4 != 0) {
    return "needs rows of whole 16 bytes, got " + std::to_string(p.rows) + " of them";
  }
  return "";
}

std::string SplitReason(const Problem& p, KernelId kernel) {
  if (IsSplitSddmm(kernel)) return SplitSddmmReason(p, kernel);
  const std::string reason = SplitOperandsReason(p);
  if (!reason.empty()) return reason;
  if (p.values_cols % 4 != 0) {
    return "needs rows of values of whole 16 bytes, got " + std::to_string(p.values_cols) +
           " columns";
  }
  if (StepsThatFit(p).empty()) {
    return "needs windows of together at most " + std::to_string(kShortMaxLines) +
           " features and " + std::to_string(kMaxSlots) +
           " slots, a multiple of 16, of which two steps fit in shared memory, got " +
           std::to_string(p.n) + ":" + std::to_string(p.m);
  }
  if (std::max({p.rows, p.depth, p.cols, p.kept, p.batch}) > kHopperMaxDimension ||
      p.depth * p.rows * 4 >= kHopperMaxStride || p.kept * p.values_cols * 4 >= kHopperMaxStride) {
    return "needs dimensions that tensor maps and 32-bit offsets hold";
  }
  if (TilesOf(p) > kHopperMaxTiles)
    return "needs at most " + std::to_string(kHopperMaxTiles) + " tiles";
  return "";
}

std::vector<Config> SplitConfigs(const Problem& p, KernelId kernel, const Device& device) {
  if (IsSplitSddmm(kernel)) return SplitSddmmConfigs(p, kernel, device);
  std::vector<Config> configs;
  const int64_t tiles = TilesOf(p);
  for (Config c : StepsThatFit(p)) {
    c.blocks = static_cast<int32_t>(std::min<int64_t>(tiles, device.num_sms));
    c.raster_cols = RasterCols(Tiles(p, c), 4.0 * kSplitRows * double(p.depth),
                               4.0 * kSplitCols * double(p.kept), device.num_sms);
    configs.push_back(c);
    if (c.shared_bytes - 2 * kShortAlignment < SplitSumsBytes(kSplitRows)) continue;
    AddSharedLaunches(p, c, tiles, device.num_sms, configs);
  }
  return configs;
}

Config SplitConfig(const Problem& p, KernelId kernel, const Device& device) {
  const std::vector<Config> configs = SplitConfigs(p, kernel, device);
  return *std::min_element(configs.begin(), configs.end(), [&](const Config& a, const Config& b) {
    return SplitCycles(p, device, a) < SplitCycles(p, device, b);
  });
}

// Chosen to follow an H200, taking 1.755 GHz for its clock: of 229 launches (4096 cubed, 256 and
// 1024, 4096, 4096, 256, 2048, 2048, 512, 5120, 5120, 4096, 22016, 8192; 16:32 to 4:32; L = 8 to
// 128; all steps and clusters) the times are 0.94 to 1.10 of it, and the launch with the least is
// the fastest or takes 3 % longer. Products alone would reach 1270 a cycle: without splitting, a
// rig took 0.85 of the time.
double SplitCycles(const Problem& p, const Device& device, const Config& c) {
  if (IsSplitSddmm(c.kernel)) return SplitSddmmCycles(p, c);
  constexpr double kProducts = 790.0;     // of mma.sync beside splitting and reads, a cycle
  constexpr double kIngressBytes = 52.0;  // from L2, a cycle and SM
  constexpr double kSharedBytes = 128.0;  // a cycle
  constexpr double kConflicts = 1.65;     // of lines picked from a window
  constexpr double kIssueShare = 0.56;    // of the cycles of a scheduler
  constexpr double kStep = 240.0, kTile = 4900.0, kLaunch = 4800.0;
  const ShortLayout layout =
      MakeShortLayout<SplitTile>(c.block_windows * p.m, c.block_kept, c.group_cols);
  const double tile = double(kSplitRows) * kSplitCols;
  const double copied = layout.table_offset;
  const double x_read = tile / c.group_cols * c.block_kept * 4.0;
  const double values_read = double(kSplitCols) * c.block_kept * 4.0;
  // Instructions of a warp for 16 slots, of which a scheduler has two.
  const double issued =
      2.0 * c.block_kept / kShortDepth * (290.0 + 220.0 * kSplitWarpCols / c.group_cols);
  const double busy =
      std::max({6.0 * tile * c.block_kept / kProducts, issued / kIssueShare, copied / kIngressBytes,
                (x_read * kConflicts + values_read + copied) / kSharedBytes});
  const double step = busy + kStep;
  const int64_t steps = Steps(p, c);
  const double multiplied =
      WalkCycles(c, TilesOf(p), steps * step, CeilDiv64(steps, c.cluster) * step, kTile,
                 SplitSumsBytes(kSplitRows));
  const double memory = 4.0 * p.batch * p.kept * p.cols / (0.85 * device.bytes_per_cycle);
  return kLaunch + Both(multiplied, memory);
}

}  // namespace jax_nm
