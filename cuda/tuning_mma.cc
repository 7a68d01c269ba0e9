#include "tuning_mma.h"

#include <algorithm>

#include "tuning_cost.h"

namespace jax_nm {
namespace {

// What host code needs to know of a kernel's tiles.
struct Shape {
  KernelId kernel;
  int32_t block_rows;
  int32_t block_cols;
  int32_t min_group_cols;  // variants: powers of two between these
  int32_t max_group_cols;
  int32_t blocks;  // on one SM at most, for their registers
};

template <class Tile>
constexpr Shape MakeShape(KernelId kernel, int32_t min_group_cols, int32_t max_group_cols) {
  return {kernel,         Tile::kBlockRows, Tile::kBlockCols,
          min_group_cols, max_group_cols,   Tile::kMinBlocks};
}

constexpr Shape kShapes[] = {
    MakeShape<SpmmMmaLarge<false>>(KernelId::kSpmmMma128x128Window, 8, 64),
    MakeShape<SpmmMmaLarge<false>>(KernelId::kSpmmMma128x128Gather, 32, 64),
    MakeShape<SpmmMmaSmall>(KernelId::kSpmmMma64x64Window, 8, 32),
    MakeShape<SpmmMmaSmall>(KernelId::kSpmmMma64x64Gather, 32, 32),
};

const Shape* FindShape(KernelId kernel) {
  for (const Shape& shape : kShapes) {
    if (shape.kernel == kernel) return &shape;
  }
  return nullptr;
}

// The widest variant whose columns lie in one group.
int32_t GroupCols(const Problem& p, const Shape& s) {
  int32_t cols = s.max_group_cols;
  while (cols >= s.min_group_cols && EffectiveVectorLength(p) % cols != 0) cols /= 2;
  return cols >= s.min_group_cols ? cols : 0;
}

// Config's thread tile is that of a warp here.
template <class Tile>
void SetWarps(Config& c) {
  c.thread_rows = Tile::kWarpRows;
  c.thread_cols = Tile::kWarpCols;
  c.threads = Tile::kThreads + kMmaCopyThreads;
}

}  // namespace

bool IsMma(KernelId kernel) { return FindShape(kernel) != nullptr; }

std::string MmaReason(const Problem& p, KernelId kernel) {
  const Shape& s = *FindShape(kernel);
  if (p.dtype == DType::kFloat32 && !p.allow_tf32) {
    return "rounds float32 operands to TF32, which HIGHEST rules out";
  }
  if (p.batch == 0 || p.rows == 0 || p.cols == 0 || p.depth == 0) {
    return "needs something to multiply, got an empty operand";
  }
  if (GroupCols(p, s) == 0) {
    return "needs a vector_length that is a multiple of " + std::to_string(s.min_group_cols) +
           " or spans all columns, got " + std::to_string(p.vector_length);
  }
  if (p.x_layout != Layout::kFeatureMajor) {
    return "needs a feature-major x, as calls with more than 64 rows have it, got a row-major one";
  }
  const int64_t element = ByteWidth(p.dtype), vector = 16 / element;
  if (p.rows % vector != 0) {
    return "needs rows of whole 16 bytes, got " + std::to_string(p.rows) + " of them";
  }
  if (p.values_cols % vector != 0) {
    return "needs rows of values of whole 16 bytes, got " + std::to_string(p.values_cols) +
           " columns";
  }
  if (std::max(p.rows, p.values_cols) * element > UINT32_MAX) {
    return "needs rows and columns of less than 4 GB each";
  }
  return "";
}

Config MmaConfig(const Problem& p, const KernelInfo& kernel) {
  const Shape& s = *FindShape(kernel.id);
  Config c{};
  c.kernel = kernel.id;
  c.staging = kernel.staging;
  c.block_rows = s.block_rows;
  c.block_cols = s.block_cols;
  c.thread_kept = 1;
  c.group_cols = GroupCols(p, s);
  const bool square = c.group_cols == 64;
  if (s.block_rows == SpmmMmaSmall::kBlockRows) {
    SetWarps<SpmmMmaSmall>(c);
  } else {
    square ? SetWarps<SpmmMmaLarge<true>>(c) : SetWarps<SpmmMmaLarge<false>>(c);
  }
  return c;
}

CopierBlocks CopierBlocksOf(const Problem& p, const Device& device, const Config& c, double most) {
  const TileCounts tiles = Tiles(p, c);
  CopierBlocks b{};
  b.owned = double(p.batch) * tiles.outer * tiles.inner;
  b.steps = double(CeilDiv(Steps(p, c), c.split));
  b.per_sm =
      std::max(1.0, double((int64_t(b.owned * c.split) + device.num_sms - 1) / device.num_sms));
  const double fitting = std::min(double(device.sm_shared_bytes / (c.shared_bytes + 1024)), most);
  b.resident = std::max(1.0, std::min(fitting, b.per_sm));
  return b;
}

double CopierCycles(const Device& device, const Config& c, const CopierBlocks& b, double busy,
                    double step, double launch) {
  constexpr double kLatency = 1200.0;
  const double per_step = busy + (step + (c.stages == 1 ? kLatency : 0.0)) / b.resident;
  const double result_bytes = 4.0 * c.block_rows * c.block_cols;
  const double once = (2.0 * kLatency + result_bytes / 16.0) / b.resident;
  double cycles = launch + b.per_sm * (b.steps * per_step + once);
  if (c.split > 1) {
    cycles += launch + b.owned * result_bytes * (c.split + 1) / (16.0 * device.num_sms);
  }
  return cycles;
}

// Chosen to follow an H200 at 4096^3 and 256,4096,4096, taking 1.755 GHz for its clock: of 150
// launches with 16 to 128 slots in a step and one to four stages the measured times are 0.75
// to 1.08 of the estimates, and the fastest of each problem and kernel is chosen, or one within 4 %
// of it.
double MmaCycles(const Problem& p, const Device& device, const Config& c) {
  // Multiplications a cycle and SM: what warps that also read their operands reach of the 1360 and
  // 680 of the tensor cores (by mma.sync; wgmma reaches 2048 and 1024). One block on an SM leaves
  // them idle more often.
  constexpr double kHalfProducts = 900.0, kTf32Products = 406.0, kOfPeak = 0.85, kAlone = 0.8;
  constexpr double kConflicts = 1.9;      // of lines picked from a window,
  constexpr double kWindowShare = 0.95;   // which also delay products that take longer
  constexpr double kSharedBytes = 128.0;  // a cycle
  constexpr double kIngressBytes = 42.0;  // from L2, a cycle and SM: 9 TB/s together
  constexpr double kStep = 380.0;         // of a block, in which others on its SM go on
  constexpr double kLaunch = 8500.0;
  const Shape& s = *FindShape(c.kernel);
  const bool half = ByteWidth(p.dtype) == 2;
  const double element = ByteWidth(p.dtype);
  const SharedLayout layout = MakeSharedLayout(p.op, c, p.m, ByteWidth(p.dtype));
  const double slots = layout.second_count;
  const double warps = (c.threads - kMmaCopyThreads) / 32.0;
  const bool window = c.staging == Staging::kWindow;

  const double most = device.wgmma ? std::max(s.blocks, kMmaBlocks) : s.blocks;
  const CopierBlocks blocks = CopierBlocksOf(p, device, c, most);
  const double resident = blocks.resident;

  const double peak = kOfPeak * device.tensor_flops / 2.0;
  const double rate = (half ? std::min(kHalfProducts, peak) : std::min(kTf32Products, peak / 2.0)) *
                      (resident > 1.0 ? 1.0 : kAlone) * (window ? kWindowShare : 1.0);
  const double products = double(c.block_rows) * c.block_cols * slots / rate;
  const double copied =
      (double(layout.first_count) * c.block_rows + slots * c.block_cols) * element;
  // Of x a warp reads the rows of its groups for each of them.
  const double x_read = warps * c.thread_cols / c.group_cols * slots * c.thread_rows * element;
  const double value_read = warps * slots * c.thread_cols * element;
  const double shared = (x_read * (window ? kConflicts : 1.0) + value_read + copied) / kSharedBytes;
  const double busy = std::max({products, shared, copied / kIngressBytes});
  return CopierCycles(device, c, blocks, busy, kStep, kLaunch);
}

}  // namespace jax_nm
