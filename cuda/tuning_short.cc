#include "tuning_short.h"

#include <algorithm>
#include <cmath>

#include "kernel_args.h"
#include "short_config.h"
#include "tuning_hopper.h"

namespace jax_nm {
namespace {

constexpr int64_t kMaxTiles = int64_t{1} << 30;
constexpr int32_t kMinGroupCols = 8;  // of a product

// What host code needs to know of a tile.
struct Shape {
  KernelId kernel;
  int32_t slabs;
  int32_t warp_cols;
};

template <class Tile>
constexpr Shape MakeShape() {
  return {Tile::kId, Tile::kSlabs, Tile::kWarpCols};
}

constexpr Shape kShapes[] = {
    MakeShape<Short128x256>(),
    MakeShape<Short64x512>(),
    MakeShape<Short64x256>(),
};

const Shape* FindShape(KernelId kernel) {
  for (const Shape& shape : kShapes) {
    if (shape.kernel == kernel) return &shape;
  }
  return nullptr;
}

// The widest variant whose columns lie in one group; 0 if there is none.
int32_t GroupCols(const Problem& p, const Shape& s) {
  int32_t cols = s.warp_cols;
  while (cols >= kMinGroupCols && EffectiveVectorLength(p) % cols != 0) cols /= 2;
  return cols >= kMinGroupCols ? cols : 0;
}

// A stage of whole windows.
Config BlocksOf(const Problem& p, const Shape& s, int32_t windows) {
  Config c{};
  c.kernel = s.kernel;
  c.staging = Staging::kWindow;
  c.block_rows = s.slabs * kHopperLineElements;
  c.block_cols = s.warp_cols * kShortWarps;
  c.block_kept = windows * p.n;
  c.block_windows = windows;
  c.group_cols = GroupCols(p, s);
  c.threads = kHopperThreads;
  c.split = 1;
  c.cluster = 1;
  c.groups_in_tile = UnitsTouched(c.block_cols, EffectiveVectorLength(p));
  return c;
}

// As many stages as fit; too few if not even kShortMinStages do.
void SetStages(const Problem& p, int64_t shared_bytes, Config& c) {
  for (c.stages = kHopperMaxStages; c.stages > 1; --c.stages) {
    c.shared_bytes = MakeShortLayout(c, p.m).shared_bytes;
    if (c.shared_bytes <= shared_bytes) break;
  }
}

int64_t TilesOfLaunch(const Problem& p, const Config& c) {
  const TileCounts tiles = Tiles(p, c);
  return p.batch * tiles.outer * tiles.inner;
}

}  // namespace

bool IsShort(KernelId kernel) { return FindShape(kernel) != nullptr; }

std::string ShortReason(const Problem& p, KernelId kernel) {
  const Shape& s = *FindShape(kernel);
  const std::string reason = HopperOperandsReason(p);
  if (!reason.empty()) return reason;
  if (GroupCols(p, s) == 0) {
    return "needs a vector_length that is a multiple of " + std::to_string(kMinGroupCols) +
           " or spans all columns, got " + std::to_string(p.vector_length);
  }
  Config c = BlocksOf(p, s, 1);
  SetStages(p, kHopperSharedBytes, c);
  if (c.stages < kShortMinStages) {
    return "needs shared memory for " + std::to_string(kShortMinStages) +
           " stages of a window, got windows of " + std::to_string(p.n) + ":" + std::to_string(p.m);
  }
  if (TilesOfLaunch(p, c) > kMaxTiles) {
    return "needs at most " + std::to_string(kMaxTiles) + " tiles";
  }
  return "";
}

std::vector<Config> ShortConfigs(const Problem& p, KernelId kernel, const Device& device) {
  const Shape& s = *FindShape(kernel);
  std::vector<Config> configs;
  for (int32_t windows = 1; windows * p.m <= kShortMaxBox; ++windows) {
    Config c = BlocksOf(p, s, windows);
    // Longer than what is needed, for whole products too, a stage only takes longer to fill.
    if (windows > 1 && (windows - 1) * p.n >= 64 && (windows - 1) * p.m >= 128) break;
    SetStages(p, std::min<int64_t>(kHopperSharedBytes, device.block_shared_bytes), c);
    if (c.stages < kShortMinStages) break;
    const TileCounts tiles = Tiles(p, c);
    c.raster_cols = HopperRasterCols(tiles, 2.0 * c.block_rows * p.depth,
                                     2.0 * c.block_cols * p.kept, device.num_sms);
    c.blocks = static_cast<int32_t>(std::min<int64_t>(TilesOfLaunch(p, c), device.num_sms));
    configs.push_back(c);
  }
  return configs;
}

Config ShortConfig(const Problem& p, KernelId kernel, const Device& device) {
  const std::vector<Config> configs = ShortConfigs(p, kernel, device);
  return *std::min_element(configs.begin(), configs.end(), [&](const Config& a, const Config& b) {
    return ShortCycles(p, device, a) < ShortCycles(p, device, b);
  });
}

// Chosen to follow a study on an H200, taking 1.755 GHz for its clock: 8192^3, L = 32, took 1432,
// 763 and 515 us at 16:32, 8:32 and 4:32, 4096^3 189, 103 and 74.
double ShortCycles(const Problem& p, const Device& device, const Config& c) {
  // Multiplications a cycle and SM: mma.sync alone reaches 1200.
  constexpr double kProducts = 920.0;
  constexpr double kSharedBytes = 128.0;  // a cycle
  constexpr double kConflicts = 1.35;     // of lines picked from a window
  constexpr double kIngressBytes = 44.0;  // from L2, a cycle and SM
  constexpr double kMemoryShare = 0.85;   // of the bandwidth on paper
  constexpr double kStep = 40.0, kLaunch = 8500.0, kTile = 3000.0;
  constexpr double kLatency = 1200.0;  // of a stage's copies, which the other stages hide
  const ShortLayout layout = MakeShortLayout(c, p.m);
  const double products = double(c.block_rows) * c.block_cols * layout.whole_slots / kProducts;
  const double x_read = 2.0 * c.block_cols / c.group_cols * layout.whole_slots * c.block_rows;
  const double value_read = 2.0 * c.block_cols * layout.whole_slots;
  const double shared = (x_read * kConflicts + value_read + layout.copied_bytes) / kSharedBytes;
  const double ingress = layout.copied_bytes / kIngressBytes;
  double sum = 0.0;
  for (const double part : {products, shared, ingress}) sum += std::pow(part, 6.0);
  const double busy = kStep + std::pow(sum, 1.0 / 6.0);
  const double step = std::max(busy, (ingress + kLatency) / (c.stages - 1));
  const int64_t tiles = TilesOfLaunch(p, c);
  const double rounds = double(CeilDiv64(tiles, c.blocks));
  const double multiplied = rounds * (Steps(p, c) * step + kTile);
  const double weight = double(p.batch) * p.kept * (2.0 * p.cols + p.groups);
  const double memory = weight / (kMemoryShare * device.bytes_per_cycle);
  return kLaunch + kLatency + std::pow(std::pow(multiplied, 4.0) + std::pow(memory, 4.0), 0.25);
}

}  // namespace jax_nm
