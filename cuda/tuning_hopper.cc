#include "tuning_hopper.h"

#include <algorithm>

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
  bool rows_are_m;
  int32_t stages;
  int32_t stage_bytes;
  int32_t shared_bytes;
};

template <class Tile>
constexpr Shape MakeShape() {
  return {Tile::kId,         Tile::kBlockRows,  Tile::kBlockCols, Tile::kBlockKept,
          Tile::kGroups,     Tile::kGroupCols,  Tile::kRowsAreM,  Tile::kStages,
          Tile::kStageBytes, Tile::kSharedBytes};
}

constexpr Shape kShapes[] = {
    MakeShape<Hopper128x256>(), MakeShape<Hopper256x128>(),  MakeShape<Hopper128x128>(),
    MakeShape<Hopper64x128>(),  MakeShape<Hopper256x64x2>(), MakeShape<Hopper128x64x2>(),
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

int64_t TilesOfLaunch(const Problem& p, const Shape& s) {
  return p.batch * CeilDiv64(p.rows, s.block_rows) * CeilDiv64(p.cols, s.block_cols);
}

std::string MultipleOf8(const char* name, int64_t got) {
  return std::string("needs ") + name + " to be a multiple of 8, the 16 bytes of a copy, got " +
         std::to_string(got);
}

}  // namespace

bool IsHopper(KernelId kernel) { return FindShape(kernel) != nullptr; }

bool HopperRowsAreM(KernelId kernel) { return FindShape(kernel)->rows_are_m; }

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
  if (p.cols % 8 != 0) return MultipleOf8("cols", p.cols);
  if (p.vector_length % s.group_cols != 0 && p.vector_length < p.cols) {
    return "needs a vector_length that is a multiple of " + std::to_string(s.group_cols) +
           " or spans all columns, got " + std::to_string(p.vector_length);
  }
  if (std::max({p.rows, p.depth, p.cols, p.kept, p.batch}) > kMaxDimension ||
      p.depth * p.rows / 8 >= int64_t{kHopperNoLine} || p.kept * p.cols * 2 >= kMaxStride ||
      p.rows * p.cols * 4 >= kMaxStride) {
    return "needs dimensions that tensor maps and 32-bit offsets hold";
  }
  if (TilesOfLaunch(p, s) > kMaxTiles) {
    return "needs at most " + std::to_string(kMaxTiles) + " tiles";
  }
  return "";
}

Config HopperConfig(const Problem& p, KernelId kernel, int32_t num_sms) {
  const Shape& s = *FindShape(kernel);
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
  c.blocks = static_cast<int32_t>(std::min<int64_t>(TilesOfLaunch(p, s), num_sms));
  c.shared_bytes = s.shared_bytes;
  return c;
}

// A step costs a constant and what its operands take to arrive. Chosen to follow an H200, taking
// 1.755 GHz for its clock: at 8192^3, 16:32, a step of 256 x 128 and of 128 x 128 takes 1480 and
// 1130 cycles, where the tensor cores alone would need 1024 and 512. At L = 256 the 128 x 256 tile,
// which moves as many bytes as 256 x 128, takes 0.99 to 1.03 times as long (twelve problems,
// geometric mean 1.02).
double HopperCycles(const Problem& p, const Config& c) {
  constexpr double kStep = 440.0, kBytesPerCycle = 47.4, kRowsAreM = 1.02;
  constexpr double kTile = 500.0, kResultBytesPerCycle = 64.0, kLaunch = 4000.0;
  const Shape& s = *FindShape(c.kernel);
  const double steps = static_cast<double>(CeilDiv64(ValidKept(p.depth, p.n, p.m), c.block_kept));
  const double step = (kStep + s.stage_bytes / kBytesPerCycle) * (s.rows_are_m ? kRowsAreM : 1.0);
  const double result = double(c.block_rows) * c.block_cols * ByteWidth(p.result_dtype);
  const int64_t waves = CeilDiv64(TilesOfLaunch(p, s), c.blocks);
  return kLaunch +
         static_cast<double>(waves) * (steps * step + kTile + result / kResultBytesPerCycle);
}

}  // namespace jax_nm
