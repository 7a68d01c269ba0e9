#include "tuning_hopper.h"

#include <algorithm>
#include <cmath>

#include "hopper_config.h"
#include "kernel_args.h"

namespace jax_nm {
namespace {

constexpr int64_t kMaxDimension = int64_t{1} << 29;  // the bytes of a feature fit in 31 bits
constexpr int64_t kMaxStride = int64_t{1} << 40;     // of a tensor map, in bytes
constexpr int64_t kMaxTiles = int64_t{1} << 30;

// What host code needs to know of a tile.
struct Shape {
  KernelId kernel;
  int32_t block_rows;
  int32_t block_cols;
  int32_t block_kept;
  int32_t groups;      // that the tile gathers for
  int32_t group_cols;  // of each; they lie in one group of the weight
  int32_t partial_bytes;
  int32_t stages;
  int32_t shared_bytes;
  double step_cycles;
};

// A step costs what wgmma reads of shared memory, and what the copies write there, take together:
// cycles of an H200 at 4096^3, 8192^3 and 1024,4096,4096. The products alone would need 1024 for
// 256 x 128 x 64 slots.
template <class Tile>
constexpr Shape MakeShape(double step_cycles) {
  return {Tile::kId,          Tile::kBlockRows, Tile::kBlockCols,    Tile::kBlockKept,
          Tile::kGroups,      Tile::kGroupCols, Tile::kPartialBytes, Tile::kStages,
          Tile::kSharedBytes, step_cycles};
}

constexpr Shape kShapes[] = {
    MakeShape<Hopper256x128>(1110.0), MakeShape<Hopper256x64x2>(800.0),
    MakeShape<Hopper128x128>(750.0),  MakeShape<Hopper128x64x2>(600.0),
    MakeShape<Hopper64x128>(480.0),   MakeShape<Hopper64x64x2>(420.0),
};

const Shape* FindShape(KernelId kernel) {
  for (const Shape& shape : kShapes) {
    if (shape.kernel == kernel) return &shape;
  }
  return nullptr;
}

int64_t CeilDiv64(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The tiles in flight walk over the slots in step, so what L2 takes from memory is one panel of x
// per row of tiles and one of the values per column of them. At 8192^3, 4:32, bands of 8 columns
// of 256 x 128 tiles read 71 MB of x in each wave of 17 us, the chosen bands of 32 read 21 MB:
// 0.273 and 0.261 ms on an H200.
int32_t RasterCols(const Problem& p, const Shape& s, int32_t num_sms) {
  const int64_t rows = CeilDiv64(p.rows, s.block_rows), cols = CeilDiv64(p.cols, s.block_cols);
  const int64_t in_flight = std::min<int64_t>(num_sms, rows * cols);
  const double row_bytes = 2.0 * s.block_rows * p.depth;
  const double col_bytes = 2.0 * s.block_cols * p.kept;
  int64_t best = 0;
  double best_bytes = 0.0;
  for (int64_t c = std::max<int64_t>(1, in_flight / rows); c <= std::min(cols, in_flight); ++c) {
    const double bytes = std::min(rows, CeilDiv64(in_flight, c)) * row_bytes + c * col_bytes;
    if (best == 0 || bytes < best_bytes) {
      best = c;
      best_bytes = bytes;
    }
  }
  return static_cast<int32_t>(CeilDiv64(cols, CeilDiv64(cols, best)));
}

constexpr int32_t kHopperArch = 90;

// Workspace is sized before the device is known: that of the GPUs of this architecture.
constexpr int32_t kTypicalBlocks = 132;
constexpr int64_t kMostRounds = 16;

int64_t TilesOfLaunch(const Problem& p, const Shape& s) {
  return p.batch * CeilDiv64(p.rows, s.block_rows) * CeilDiv64(p.cols, s.block_cols);
}

int64_t HopperSteps(const Problem& p, const Shape& s) {
  return CeilDiv64(ValidKept(p.depth, p.n, p.m), s.block_kept);
}

std::string MultipleOf8(const char* name, int64_t got) {
  return std::string("needs ") + name + " to be a multiple of 8, the 16 bytes of a copy, got " +
         std::to_string(got);
}

}  // namespace

bool IsHopper(KernelId kernel) { return FindShape(kernel) != nullptr; }

std::string HopperReason(const Problem& p, KernelId kernel) {
  const Shape& s = *FindShape(kernel);
  if (p.dtype != DType::kBFloat16 && p.dtype != DType::kFloat16) {
    return "needs bfloat16 or float16 operands";
  }
  if (p.x_layout != Layout::kFeatureMajor) return "needs a feature-major x, got a row-major one";
  if (p.batch == 0 || p.rows == 0 || p.cols == 0 || p.depth == 0) {
    return "needs something to multiply, got an empty operand";
  }
  if (p.rows % 8 != 0) return MultipleOf8("rows", p.rows);
  if (p.values_cols % 8 != 0) return MultipleOf8("the length of a row of values", p.values_cols);
  if (p.y_layout == Layout::kRowMajor && p.cols * ByteWidth(p.result_dtype) % 16 != 0) {
    return "needs a row-major y to have rows of whole 16 bytes, got " + std::to_string(p.cols) +
           " columns";
  }
  if (p.vector_length % s.group_cols != 0 && p.vector_length < p.cols) {
    return "needs a vector_length that is a multiple of " + std::to_string(s.group_cols) +
           " or spans all columns, got " + std::to_string(p.vector_length);
  }
  if (std::max({p.rows, p.depth, p.cols, p.kept, p.batch}) > kMaxDimension ||
      p.depth * p.rows / 8 >= int64_t{kHopperNoLine} || p.kept * p.values_cols * 2 >= kMaxStride ||
      p.rows * p.cols * 4 >= kMaxStride) {
    return "needs dimensions that tensor maps and 32-bit offsets hold";
  }
  if (TilesOfLaunch(p, s) > kMaxTiles) {
    return "needs at most " + std::to_string(kMaxTiles) + " tiles";
  }
  return "";
}

Config HopperConfig(const Problem& p, KernelId kernel, int32_t num_sms, int64_t workspace_bytes) {
  const Shape& s = *FindShape(kernel);
  const int64_t tiles = TilesOfLaunch(p, s);
  Config c{};
  c.kernel = kernel;
  c.staging = Staging::kGather;
  c.block_rows = s.block_rows;
  c.block_cols = s.block_cols;
  c.block_kept = s.block_kept;
  c.block_windows = UnitsTouched(s.block_kept, p.n);
  c.threads = kHopperThreads;
  c.stages = s.stages;
  c.split = 1;
  c.groups_in_tile = s.groups;
  c.shared_group = true;
  c.raster_cols = RasterCols(p, s, num_sms);
  c.blocks = static_cast<int32_t>(std::min<int64_t>(tiles, num_sms));
  c.shared_bytes = s.shared_bytes;

  // Whole rounds of tiles, and what is left, at least one round, shared out evenly.
  Config shared = c;
  shared.blocks = std::min(num_sms, kHopperMaxBlocks);
  shared.shared_tiles =
      static_cast<int32_t>(tiles - std::max<int64_t>(tiles / shared.blocks - 1, 0) * shared.blocks);
  const int64_t needed = kHopperFlagBytes + int64_t{shared.blocks} * s.partial_bytes;
  const int64_t steps = int64_t{shared.shared_tiles} * HopperSteps(p, s);
  // A block without a step would never set the flag that another waits for; the kernel counts the
  // steps in 32 bits.
  if (tiles % shared.blocks == 0 || steps < shared.blocks || steps > INT32_MAX ||
      needed > workspace_bytes) {
    return c;
  }
  return HopperCycles(p, shared) < HopperCycles(p, c) ? shared : c;
}

// Chosen to follow an H200: a launch with its first loads and last stores, what a tile costs beside
// its steps, and what the sums of one block cost that leaves them and the one that adds them up.
double HopperCycles(const Problem& p, const Config& c) {
  constexpr double kLaunch = 8500.0, kTile = 2500.0, kFlags = 2500.0, kPartialBytesPerCycle = 24.0;
  const Shape& s = *FindShape(c.kernel);
  const double steps = static_cast<double>(HopperSteps(p, s));
  const int64_t whole = TilesOfLaunch(p, s) - c.shared_tiles;
  const double rounds = static_cast<double>(CeilDiv64(whole, c.blocks));
  const double cycles = kLaunch + rounds * (steps * s.step_cycles + kTile);
  if (c.shared_tiles == 0) return cycles;
  const double tiles_of_block = static_cast<double>(c.shared_tiles) / c.blocks;
  const double partials = 1.0 + std::ceil(1.0 / tiles_of_block);
  return cycles + std::ceil(steps * tiles_of_block) * s.step_cycles +
         (1.0 + tiles_of_block) * kTile + kFlags +
         partials * s.partial_bytes / kPartialBytesPerCycle;
}

int64_t HopperWorkspaceBytes(const Problem& p) {
  if (p.arch != 0 && p.arch != kHopperArch) return 0;
  int64_t bytes = 0;
  for (const Shape& s : kShapes) {
    if (!HopperReason(p, s.kernel).empty()) continue;
    // Beyond a few rounds of tiles the last one costs little.
    if (TilesOfLaunch(p, s) > kMostRounds * kTypicalBlocks) continue;
    bytes = std::max(bytes, kHopperFlagBytes + int64_t{kTypicalBlocks} * s.partial_bytes);
  }
  return bytes;
}

}  // namespace jax_nm
