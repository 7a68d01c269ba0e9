#include "tuning_short.h"

#include <algorithm>
#include <vector>

#include "short_config.h"
#include "tuning_hopper.h"
#include "tuning_windows.h"

namespace jax_nm {
namespace {

constexpr int32_t kMaxSlots = 128;

std::vector<Config> StepsThatFit(const Problem& p) {
  return WindowSteps<ShortTile>(p, KernelId::kSpmmShort128x256, kMaxSlots);
}

int64_t TilesOf(const Problem& p) {
  return p.batch * CeilDiv64(p.rows, kShortRows) * CeilDiv64(p.cols, kShortCols);
}

std::string MultipleOf8(const char* name, int64_t got) {
  return std::string("needs ") + name + " to be a multiple of 8, the 16 bytes of a vector, got " +
         std::to_string(got);
}

}  // namespace

std::string ShortReason(const Problem& p) {
  if (p.dtype != DType::kBFloat16 && p.dtype != DType::kFloat16) {
    return "needs bfloat16 or float16 operands";
  }
  if (p.x_layout != Layout::kFeatureMajor) return "needs a feature-major x, got a row-major one";
  if (p.batch == 0 || p.rows == 0 || p.cols == 0 || p.depth == 0) {
    return "needs something to multiply, got an empty operand";
  }
  if (WindowGroupCols(p) == 0) {
    return "needs a vector_length that is a multiple of 8 or spans all columns, got " +
           std::to_string(p.vector_length);
  }
  if (p.rows % 8 != 0) return MultipleOf8("rows", p.rows);
  if (p.values_cols % 8 != 0) return MultipleOf8("the length of a row of values", p.values_cols);
  if (p.y_layout == Layout::kRowMajor && p.cols * ByteWidth(p.result_dtype) % 16 != 0) {
    return "needs a row-major result to have rows of whole 16 bytes, got " +
           std::to_string(p.cols) + " columns";
  }
  if (StepsThatFit(p).empty()) {
    return "needs windows of together at most " + std::to_string(kShortMaxLines) +
           " features and " + std::to_string(kMaxSlots) +
           " slots, a multiple of 16, of which three steps fit in shared memory, got " +
           std::to_string(p.n) + ":" + std::to_string(p.m);
  }
  if (std::max({p.rows, p.depth, p.cols, p.kept, p.batch}) > kHopperMaxDimension ||
      p.depth * p.rows * 2 >= kHopperMaxStride || p.kept * p.values_cols * 2 >= kHopperMaxStride) {
    return "needs dimensions that tensor maps and 32-bit offsets hold";
  }
  if (TilesOf(p) > kHopperMaxTiles)
    return "needs at most " + std::to_string(kHopperMaxTiles) + " tiles";
  return "";
}

std::vector<Config> ShortConfigs(const Problem& p, const Device& device) {
  std::vector<Config> configs = StepsThatFit(p);
  for (Config& c : configs) {
    c.blocks = static_cast<int32_t>(std::min<int64_t>(TilesOf(p), device.num_sms));
    c.raster_cols = RasterCols(Tiles(p, c), 2.0 * kShortRows * double(p.depth),
                               2.0 * kShortCols * double(p.kept), device.num_sms);
  }
  return configs;
}

Config ShortConfig(const Problem& p, const Device& device) {
  const std::vector<Config> configs = ShortConfigs(p, device);
  return *std::min_element(configs.begin(), configs.end(), [&](const Config& a, const Config& b) {
    return ShortCycles(p, device, a) < ShortCycles(p, device, b);
  });
}

// Chosen to follow an H200, taking 1.755 GHz for its clock: of 60 launches (4096 and 8192 cubed,
// 4096, 12288, 4096, 512, 8192, 8192; 16:32 to 4:32; L = 8 to 64) the times are within 20 % of it.
double ShortCycles(const Problem& p, const Device& device, const Config& c) {
  constexpr double kProducts = 760.0;     // of mma.sync beside reads of shared memory
  constexpr double kIngressBytes = 50.0;  // from L2, a cycle and SM
  constexpr double kSharedBytes = 128.0;  // a cycle
  constexpr double kConflicts = 1.65;     // of lines picked from a window
  constexpr double kStep = 70.0, kTile = 2500.0, kLaunch = 8500.0;
  const ShortLayout layout = MakeShortLayout(c.block_windows * p.m, c.block_kept, c.group_cols);
  const double tile = double(kShortRows) * kShortCols;
  const double copied = layout.table_offset;
  const double x_read = tile / c.group_cols * c.block_kept * 2.0;
  const double values_read = double(kShortCols) * c.block_kept * 2.0;
  const double busy = std::max({tile * c.block_kept / kProducts, copied / kIngressBytes,
                                (x_read * kConflicts + values_read + copied) / kSharedBytes});
  const double step = busy + kStep;
  const double rounds = double(CeilDiv64(TilesOf(p), c.blocks));
  const double memory = 2.0 * p.batch * p.kept * p.cols / (0.85 * device.bytes_per_cycle);
  const double multiplied = rounds * (Steps(p, c) * step + kTile);
  return kLaunch + Both(multiplied, memory);
}

}  // namespace jax_nm
