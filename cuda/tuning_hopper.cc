#include "tuning_hopper.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "hopper_config.h"
#include "kernel_args.h"
#include "tf32_config.h"
#include "tuning.h"

namespace jax_nm {
namespace {

// What host code needs to know of a tile.
struct Shape {
  Op op;
  KernelId kernel;
  int32_t block_n;      // rows of spmm and spmm_t, slots of sddmm
  int32_t block_cols;   // features of spmm_t
  int32_t block_depth;  // of the reduction: slots of spmm, rows of sddmm
  int32_t groups;       // that the tile gathers for
  int32_t group_cols;   // of each; they lie in one group of the weight
  int32_t stages;
  int32_t shared_bytes;
  double step_cycles;  // of a step
  double tile_cycles;  // of a tile beside its steps
  double l2_bytes;     // of a step, from L2; 0 where `step_cycles` was measured with all SMs at it
  // spmm_t
  int32_t slots = 0;             // that the features of a tile keep
  int32_t parts = 0;             // of a partial sum
  double group_cycles = 0.0;     // of a group beside its steps, for each part
  double products_cycles = 0.0;  // of tensor cores alone, in a step
};

// A step costs what wgmma reads of shared memory, and what the copies write there, take together:
// cycles of an H200 at 4096^3, 16:32 and 4:32. The products alone would need 1024 for 256 x 128 x
// 64 slots.
template <class Tile>
constexpr Shape MakeShape(double step_cycles, double tile_cycles) {
  return {Tile::kOp,          Tile::kId,     Tile::kBlockN,    Tile::kBlockCols,
          Tile::kBlockDepth,  Tile::kGroups, Tile::kGroupCols, Tile::kStages,
          Tile::kSharedBytes, step_cycles,   tile_cycles,      0.0};
}

// The same of a step on an SM alone. Together they get no more from L2 than it gives.
template <class Tile>
constexpr Shape MakeShapeOnL2(double step_cycles, double tile_cycles) {
  static_assert(Tile::kGroups == 1, "one group's lines of x");
  Shape s = MakeShape<Tile>(step_cycles, tile_cycles);
  s.l2_bytes = 2.0 * Tile::kBlockDepth * (Tile::kBlockN + Tile::kBlockCols);
  return s;
}

// Cycles of an H200 at 4096^3, L = 128 and 256, with one part; those of the smallest tile, and that
// a second part costs as much as the first, are guesses. Products alone as a microbenchmark of
// wgmma took them.
struct ScatterCycles {
  double step;
  double group;
  double products;
};
constexpr ScatterCycles kScatter128{560.0, 300.0, 512.0}, kScatter64{390.0, 170.0, 256.0},
    kScatter32{380.0, 60.0, 210.0}, kScatter16{370.0, 60.0, 180.0};

template <class Tile>
constexpr Shape MakeScatterShape(const ScatterCycles& cycles) {
  return {Op::kSpmmT,           Tile::kId,       Tile::kBlockRows,
          Tile::kBlockFeatures, Tile::kStepCols, 1,
          Tile::kStepCols,      Tile::kStages,   Tile::kSharedBytes,
          cycles.step,          4000.0,          0.0,
          Tile::kSlots,         Tile::kParts,    cycles.group,
          cycles.products};
}

constexpr Shape kShapes[] = {
    MakeScatterShape<HopperScatter128>(kScatter128),
    MakeScatterShape<HopperScatter64>(kScatter64),
    MakeScatterShape<HopperScatter32>(kScatter32),
    MakeScatterShape<HopperScatter16>(kScatter16),
    MakeScatterShape<HopperScatter128HiLo>(kScatter128),
    MakeScatterShape<HopperScatter64HiLo>(kScatter64),
    MakeScatterShape<HopperScatter32HiLo>(kScatter32),
    MakeScatterShape<HopperScatter16HiLo>(kScatter16),
    MakeShapeOnL2<HopperSpmm256x128>(1100.0, 3000.0),
    MakeShape<HopperSpmm256x64x2>(820.0, 4500.0),
    MakeShapeOnL2<HopperSpmm128x128>(656.0, 1800.0),
    MakeShape<HopperSpmm128x64x2>(530.0, 1000.0),
    MakeShapeOnL2<HopperSpmm64x128>(400.0, 1100.0),
    MakeShape<HopperSpmm64x64x2>(360.0, 700.0),
    MakeShape<HopperSddmm256x128>(1100.0, 4000.0),
    MakeShape<HopperSddmm128x128>(656.0, 2300.0),
    MakeShape<HopperSddmm128x64x2>(1000.0, 2300.0),
    MakeShape<HopperSddmm64x128>(470.0, 1100.0),
    MakeShape<HopperSddmm64x64x2>(600.0, 1100.0),
    // Without the results of a tile, of which HopperCycles counts the bytes.
    MakeShape<Tf32Spmm256x128>(1300.0, 0.0),
    MakeShape<Tf32Spmm128x128>(880.0, 0.0),
    MakeShape<Tf32Spmm256x64x2>(1090.0, 0.0),
    MakeShape<Tf32Spmm128x64x2>(1010.0, 0.0),
};

const Shape* FindShape(KernelId kernel) {
  for (const Shape& shape : kShapes) {
    if (shape.kernel == kernel) return &shape;
  }
  return nullptr;
}

// The blocks of a tile, which is what Tiles and Steps ask of a configuration.
Config BlocksOf(const Problem& p, const Shape& s) {
  Config c{};
  c.kernel = s.kernel;
  switch (p.op) {
    case Op::kSpmm:
      c.block_rows = s.block_n;
      c.block_cols = s.block_cols;
      c.block_kept = s.block_depth;
      break;
    case Op::kSpmmT:
      c.block_rows = s.block_n;
      c.block_cols = s.block_depth;
      c.block_kept = s.slots;
      break;
    case Op::kSddmm:
      // A line of 128 bytes, of which `block_depth` counts the elements in half precision.
      c.block_rows = s.block_depth * 2 / ByteWidth(p.dtype);
      c.block_cols = s.block_cols;
      c.block_kept = s.block_n;
      break;
  }
  c.block_windows = p.op == Op::kSpmmT ? s.block_cols / p.m : UnitsTouched(c.block_kept, p.n);
  return c;
}

int32_t RasterColsOf(const Problem& p, const Shape& s, const TileCounts& tiles, int32_t num_sms) {
  double n_bytes = 0.0, col_bytes = 0.0;
  switch (p.op) {
    case Op::kSpmm:
      n_bytes = ByteWidth(p.dtype) * double(s.block_n) * p.depth;
      col_bytes = ByteWidth(p.dtype) * double(s.block_cols) * p.kept;
      break;
    case Op::kSpmmT:
      n_bytes = 2.0 * s.block_n * p.cols;
      col_bytes = 2.0 * s.slots * p.cols;
      break;
    case Op::kSddmm:
      // Tiles of different columns gather different features: together, all of their windows.
      n_bytes = double(ByteWidth(p.dtype)) * s.block_n / p.n * p.m * p.rows;
      col_bytes = double(ByteWidth(p.dtype)) * s.block_cols * p.rows;
      break;
  }
  return RasterCols(tiles, n_bytes, col_bytes, num_sms);
}

int64_t TilesOfLaunch(const Problem& p, const Config& c) {
  const TileCounts tiles = Tiles(p, c);
  return p.batch * tiles.outer * tiles.inner;
}

// What spmm_t needs of a pattern: whole windows in each block of features, and 16 slots for them,
// or with two parts at most as many.
std::string PatternReason(const Problem& p, const Shape& s) {
  const int32_t features = s.block_cols / (s.slots / kHopperBlockSlots);
  const int32_t slots = features % p.m == 0 ? features / p.m * p.n : 0;
  const std::string got = ", got " + std::to_string(p.n) + ":" + std::to_string(p.m);
  if (s.parts > 1 && (slots == 0 || slots > kHopperBlockSlots)) {
    return "needs m to divide " + std::to_string(features) + " and at most 16 slots for as many" +
           " features" + got;
  }
  if (s.parts == 1 && slots != kHopperBlockSlots) {
    return "needs n to divide 16, m to divide 256 and n / m to be " + std::to_string(s.slots) +
           " / 256" + got;
  }
  return "";
}

std::string MultipleOf(const char* name, int32_t of, int64_t got) {
  return std::string("needs ") + name + " to be a multiple of " + std::to_string(of) +
         ", the 16 bytes of a copy, got " + std::to_string(got);
}

// The ways to launch a kernel for a problem that it computes.
std::vector<Config> LaunchesOf(const Problem& p, KernelId kernel, int32_t num_sms) {
  const Shape& s = *FindShape(kernel);
  Config c = BlocksOf(p, s);
  const int64_t tiles = TilesOfLaunch(p, c);
  c.staging = p.op == Op::kSpmmT ? Staging::kScatter : Staging::kGather;
  c.threads = kHopperThreads;
  c.stages = s.stages;
  c.split = 1;
  c.groups_in_tile = s.groups;
  c.shared_group = true;
  c.raster_cols = RasterColsOf(p, s, Tiles(p, c), num_sms);
  c.blocks = static_cast<int32_t>(std::min<int64_t>(tiles, num_sms));
  c.cluster = 1;
  c.shared_bytes = s.shared_bytes;
  std::vector<Config> configs{c};
  const bool shares =
      p.op != Op::kSpmmT && (IsTf32(kernel) || HopperShares(s.block_n, ByteWidth(p.result_dtype)));
  // In TF32 sharing was never faster with more than two tiles for each block.
  if (!shares || (IsTf32(kernel) && tiles >= 2 * num_sms)) return configs;
  AddSharedLaunches(p, c, tiles, num_sms, configs);
  return configs;
}

// The values come from memory, the other operands more often from L2, just written.
double ValuesBytes(const Problem& p) {
  return double(ByteWidth(p.dtype)) * p.batch * p.kept * p.cols;
}

}  // namespace

int32_t BlocksInClusters(int32_t num_sms, int32_t cluster) {
  return (cluster == 2 ? num_sms : num_sms * 8 / 9) / cluster * cluster;
}

void AddSharedLaunches(const Problem& p, Config c, int64_t tiles, int32_t num_sms,
                       std::vector<Config>& configs) {
  for (int32_t cluster = 2; cluster <= kHopperMaxCluster; ++cluster) {
    const int32_t most = BlocksInClusters(num_sms, cluster);
    // Every block of a cluster has a step.
    if (most == 0 || Steps(p, c) < cluster) break;
    c.cluster = cluster;
    c.shared_tiles = static_cast<int32_t>(tiles % most);
    c.blocks = static_cast<int32_t>(std::min<int64_t>(tiles * cluster, most));
    if (c.shared_tiles > 0) configs.push_back(c);
  }
}

double WalkCycles(const Config& c, int64_t tiles, double walk, double shared_walk, double tile,
                  double sums_bytes) {
  constexpr double kShare = 1500.0, kBytesPerCycle = 14.0;
  const double share = kShare + sums_bytes * (c.cluster - 1) / c.cluster / kBytesPerCycle;
  return double(CeilDiv64(tiles - c.shared_tiles, c.blocks)) * (walk + tile) +
         double(CeilDiv64(c.shared_tiles, c.blocks / c.cluster)) * (shared_walk + tile + share);
}

double Both(double a, double b) { return std::pow(std::pow(a, 4.0) + std::pow(b, 4.0), 0.25); }

int32_t RasterCols(const TileCounts& tiles, double outer_bytes, double inner_bytes,
                   int32_t num_sms) {
  const int64_t outer = tiles.outer, cols = tiles.inner;
  const int64_t in_flight = std::min<int64_t>(num_sms, outer * cols);
  int64_t best = 0;
  double best_bytes = 0.0;
  for (int64_t c = std::max<int64_t>(1, in_flight / outer); c <= std::min(cols, in_flight); ++c) {
    const double bytes = std::min(outer, CeilDiv64(in_flight, c)) * outer_bytes + c * inner_bytes;
    if (best == 0 || bytes < best_bytes) {
      best = c;
      best_bytes = bytes;
    }
  }
  return static_cast<int32_t>(CeilDiv64(cols, CeilDiv64(cols, best)));
}

bool IsTf32(KernelId kernel) {
  return kernel == KernelId::kSpmmTf32256x128 || kernel == KernelId::kSpmmTf32128x128 ||
         kernel == KernelId::kSpmmTf32256x64x2 || kernel == KernelId::kSpmmTf32128x64x2;
}

bool IsHopper(KernelId kernel) { return FindShape(kernel) != nullptr; }

std::string HopperReason(const Problem& p, KernelId kernel) {
  const Shape& s = *FindShape(kernel);
  if (IsTf32(kernel) && p.dtype != DType::kFloat32) return "needs float32 operands";
  const bool one_part = p.op == Op::kSpmmT && s.parts == 1;
  if (one_part && p.dtype != DType::kBFloat16) return "needs bfloat16 operands";
  if (one_part && !p.allow_tf32) return "rounds partial sums to bfloat16, which HIGHEST rules out";
  const bool tf32 = p.dtype == DType::kFloat32 && (p.op == Op::kSddmm || IsTf32(kernel));
  if (tf32 && !p.allow_tf32) return "rounds float32 operands to TF32, which HIGHEST rules out";
  if (!tf32 && p.dtype != DType::kBFloat16 && p.dtype != DType::kFloat16) {
    return "needs bfloat16 or float16 operands";
  }
  if (p.op == Op::kSpmmT) {
    const std::string reason = PatternReason(p, s);
    if (!reason.empty()) return reason;
  }
  if (p.x_layout != Layout::kFeatureMajor) return "needs a feature-major x, got a row-major one";
  if (p.batch == 0 || p.rows == 0 || p.cols == 0 || p.depth == 0) {
    return "needs something to multiply, got an empty operand";
  }
  const int32_t chunk = 16 / ByteWidth(p.dtype);
  if (p.rows % chunk != 0) return MultipleOf("rows", chunk, p.rows);
  if (p.op != Op::kSpmm && p.y_layout != Layout::kFeatureMajor) {
    return "needs a feature-major dy, got a row-major one";
  }
  if (p.op != Op::kSddmm && !p.values_transposed && p.values_cols % chunk != 0) {
    return MultipleOf("the length of a row of values", chunk, p.values_cols);
  }
  const bool row_major_result =
      p.op == Op::kSddmm || (p.op == Op::kSpmm && p.y_layout == Layout::kRowMajor);
  if (row_major_result && p.cols * ByteWidth(p.result_dtype) % 16 != 0) {
    return "needs a row-major result to have rows of whole 16 bytes, got " +
           std::to_string(p.cols) + " columns";
  }
  if (p.vector_length % s.group_cols != 0 && p.vector_length < p.cols) {
    return "needs a vector_length that is a multiple of " + std::to_string(s.group_cols) +
           " or spans all columns, got " + std::to_string(p.vector_length);
  }
  if (std::max({p.rows, p.depth, p.cols, p.kept, p.batch}) > kHopperMaxDimension ||
      p.depth * p.rows / chunk >= int64_t{kHopperNoLine} ||
      PaddedKept(p.kept) * p.values_cols * ByteWidth(p.dtype) >= kHopperMaxStride ||
      std::max(p.rows, p.kept) * p.cols * 4 >= kHopperMaxStride) {
    return "needs dimensions that tensor maps and 32-bit offsets hold";
  }
  if (TilesOfLaunch(p, BlocksOf(p, s)) > kHopperMaxTiles) {
    return "needs at most " + std::to_string(kHopperMaxTiles) + " tiles";
  }
  return "";
}

Config HopperConfig(const Problem& p, KernelId kernel, const Device& device) {
  const std::vector<Config> configs = LaunchesOf(p, kernel, device.num_sms);
  return *std::min_element(configs.begin(), configs.end(), [&](const Config& a, const Config& b) {
    return HopperCycles(p, device, a) < HopperCycles(p, device, b);
  });
}

// Chosen to follow an H100 and an H200: a launch with its first loads and last stores. The points
// of suite hopper took 0.86 to 1.26 of the estimate, with a standard deviation of 6 %; without the
// limit of L2 it was 9 %. With few rows the values stream from memory. In TF32, where the results
// of a tile are stored before the next one is begun, the fastest of the kernels took 0.86 to 1.14
// of the estimate on an H200.
double HopperCycles(const Problem& p, const Device& device, const Config& c) {
  constexpr double kLaunch = 8500.0;
  constexpr double kMemoryShare = 0.85;        // of the bandwidth on paper
  constexpr double kL2BytesPerCycle = 5800.0;  // for all SMs
  const Shape& s = *FindShape(c.kernel);
  const double step = Both(s.step_cycles, s.l2_bytes * c.blocks / kL2BytesPerCycle);
  const int64_t steps = Steps(p, c);
  double walk_cycles = steps * step;
  if (p.op == Op::kSpmmT) {
    // The products of a group's scatter: 64 x 256 by 16 slots, of each consumer.
    constexpr double kScatter = 256.0;
    walk_cycles = std::max(walk_cycles + p.groups * s.parts * s.group_cycles,
                           steps * s.products_cycles + p.groups * s.parts * kScatter);
  }
  const double bandwidth = kMemoryShare * device.bytes_per_cycle;
  const double stored =
      IsTf32(c.kernel) ? double(ByteWidth(p.result_dtype)) * p.batch * p.rows * p.cols / bandwidth
                       : 0.0;
  const double multiplied =
      stored + WalkCycles(c, TilesOfLaunch(p, c), walk_cycles, CeilDiv64(steps, c.cluster) * step,
                          s.tile_cycles, 4.0 * s.block_n * s.block_cols);
  return kLaunch + Both(multiplied, ValuesBytes(p) / bandwidth);
}

}  // namespace jax_nm
