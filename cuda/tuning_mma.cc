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
    MakeShape<SpmmMmaWide<false>>(KernelId::kSpmmMma128x256Window, 32, 64),
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
  c.row_warps = Tile::kRowWarps;
  c.threads = Tile::kThreads;
}

}  // namespace

bool IsMma(KernelId kernel) { return FindShape(kernel) != nullptr; }

std::string MmaReason(const Problem& p, KernelId kernel) {
  const Shape& s = *FindShape(kernel);
  if (p.dtype == DType::kFloat32 && !p.allow_tf32) {
    return "rounds float32 operands to TF32, which HIGHEST rules out";
  }
  const int32_t vector = 16 / ByteWidth(p.dtype);
  if (p.x_layout != Layout::kFeatureMajor || p.rows % vector != 0) {
    return "needs a feature-major x with rows of whole 16 bytes, got " +
           (p.x_layout != Layout::kFeatureMajor ? std::string("a row-major one")
                                                : std::to_string(p.rows) + " rows");
  }
  if (p.values_cols % vector != 0) {
    return "needs rows of values of whole 16 bytes, got " + std::to_string(p.values_cols) +
           " columns";
  }
  if (GroupCols(p, s) == 0) {
    return "needs a vector_length that is a multiple of " + std::to_string(s.min_group_cols) +
           " or spans all columns, got " + std::to_string(p.vector_length);
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
  if (kernel.id == KernelId::kSpmmMma128x256Window) {
    square ? SetWarps<SpmmMmaWide<true>>(c) : SetWarps<SpmmMmaWide<false>>(c);
  } else if (s.block_rows == SpmmMmaSmall::kBlockRows) {
    SetWarps<SpmmMmaSmall>(c);
  } else {
    square ? SetWarps<SpmmMmaLarge<true>>(c) : SetWarps<SpmmMmaLarge<false>>(c);
  }
  return c;
}

double MmaCycles(const Problem& p, const Device& device, const Config& c) {
  // mma.sync reaches 560 TFLOP/s on an H200, 0.6 of what wgmma does; elsewhere it is all there is.
  constexpr double kMostProducts = 1200.0;  // multiplications a cycle and SM, in half precision
  constexpr double kConflicts = 2.1;        // of eight lines picked from a window, on average
  constexpr double kSharedBytes = 128.0;    // a cycle
  constexpr double kIngressBytes = 36.0;    // from L2, a cycle and SM
  constexpr double kCopySlots = 6.0, kStepSlots = 150.0;
  constexpr double kLaunch = 8500.0, kLatency = 1200.0, kBarrier = 500.0;
  const Shape& s = *FindShape(c.kernel);
  const double element = ByteWidth(p.dtype);
  const SharedLayout layout = MakeSharedLayout(p.op, c, p.m, ByteWidth(p.dtype));
  const double slots = layout.second_count;
  const double warps = c.threads / 32.0;
  const bool window = c.staging == Staging::kWindow;

  const double products = double(c.block_rows) * c.block_cols * slots;
  const double rate = std::min(kMostProducts, device.tensor_flops / 2.0) * 2.0 / element;
  const double x_bytes = double(layout.first_count) * c.block_rows * element;
  const double value_bytes = slots * c.block_cols * element;
  const double x_read = warps * c.thread_cols / c.group_cols * slots * c.thread_rows * element;
  const double value_read = warps * slots * c.thread_cols * element;
  const double shared =
      (x_read * (window ? kConflicts : 1.0) + value_read + x_bytes + value_bytes) / kSharedBytes;
  const double loads = (x_read + value_read) / 512.0;
  const double copies = (x_bytes + value_bytes) / 512.0;
  const double issue = (products / (2048.0 * 2.0 / element) + 3.0 * loads + kCopySlots * copies +
                        warps * kStepSlots) /
                       4.0;
  const double busy =
      std::max({products / rate, shared, issue, (x_bytes + value_bytes) / kIngressBytes});

  const TileCounts tiles = Tiles(p, c);
  const double owned = double(p.batch) * tiles.outer * tiles.inner;
  const double blocks = owned * c.split;
  const double steps = double(CeilDiv(Steps(p, c), c.split));
  const double per_sm =
      std::max(1.0, double((int64_t(blocks) + device.num_sms - 1) / device.num_sms));
  const double fitting =
      std::min(double(device.sm_shared_bytes / (c.shared_bytes + 1024)), double(s.blocks));
  const double resident = std::max(1.0, std::min(fitting, per_sm));
  const double per_step = busy + (kBarrier + (c.stages == 1 ? kLatency : 0.0)) / resident;
  const double result_bytes = 4.0 * c.block_rows * c.block_cols;
  const double once = (2.0 * kLatency + result_bytes / 16.0) / resident;
  double cycles = kLaunch + per_sm * (steps * per_step + once);
  if (c.split > 1) {
    cycles += kLaunch + owned * result_bytes * (c.split + 1) / (16.0 * device.num_sms);
  }
  return cycles;
}

}  // namespace jax_nm
