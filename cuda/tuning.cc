#include "tuning.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel_args.h"
#include "tuning_cost.h"
#include "tuning_ffma.h"
#include "tuning_hopper.h"
#include "tuning_mma.h"
#include "tuning_short.h"
#include "tuning_skinny.h"
#include "tuning_split.h"

namespace jax_nm {
namespace {

// The kernels number features, rows and slots in 32 bits and add a tile's extent to them.
constexpr int64_t kMaxDimension = int64_t{1} << 30;

// A reduction is split into at most this many shares, and the partial results of all of them take
// at most this much memory.
constexpr int32_t kMaxSplit = 16;
constexpr int64_t kMaxWorkspaceBytes = int64_t{32} << 20;

// Split until there are about two 128 x 128 tiles for each SM of a large GPU.
constexpr int64_t kEnoughTiles = 256;

constexpr int32_t kSplits[] = {1, 2, 3, 4, 6, 8, 12, 16};

template <class Tile>
Config SpmmConfig(const KernelInfo& kernel) {
  Config c{};
  c.kernel = kernel.id;
  c.staging = kernel.staging;
  c.block_rows = Tile::kBlockRows;
  c.block_cols = Tile::kBlockCols;
  c.thread_rows = Tile::kThreadRows;
  c.thread_cols = Tile::kThreadCols;
  c.thread_kept = 1;
  c.threads = Tile::kThreads;
  c.row_warps = Tile::kRowWarps;
  return c;
}

template <class Tile>
Config SpmmTConfig(const KernelInfo& kernel) {
  Config c{};
  c.kernel = kernel.id;
  c.staging = kernel.staging;
  c.block_rows = Tile::kWarpRows;
  c.block_cols = Tile::kBlockCols;
  c.thread_rows = Tile::kThreadRows;
  c.thread_cols = 1;
  c.thread_kept = Tile::kThreadKept;
  c.warp_kept = Tile::kWarpKept;
  return c;
}

template <class Tile>
Config SddmmConfig(const KernelInfo& kernel, int32_t element_bytes) {
  Config c{};
  c.kernel = kernel.id;
  c.staging = kernel.staging;
  c.block_rows = kSddmmRowBytes / element_bytes;
  c.block_cols = Tile::kBlockCols;
  c.block_kept = Tile::kBlockKept;
  c.thread_rows = 1;
  c.thread_cols = Tile::kThreadCols;
  c.thread_kept = Tile::kThreadKept;
  c.threads = Tile::kThreads;
  c.row_warps = 1;
  return c;
}

// The part of a configuration that the tile of a kernel of the generic family fixes.
Config BaseConfig(const KernelInfo& kernel, int32_t element_bytes) {
  switch (kernel.id) {
    case KernelId::kSpmm128x128Window:
    case KernelId::kSpmm128x128Gather:
      return SpmmConfig<SpmmLarge>(kernel);
    case KernelId::kSpmm64x64Window:
    case KernelId::kSpmm64x64Gather:
      return SpmmConfig<SpmmMedium>(kernel);
    case KernelId::kSpmm32x32Window:
    case KernelId::kSpmm32x32Gather:
      return SpmmConfig<SpmmSmall>(kernel);
    case KernelId::kSpmmFfma128x128Window:
    case KernelId::kSpmmFfma128x128Gather: {
      Config c = SpmmConfig<SpmmFfmaLarge>(kernel);
      c.threads += kFfmaCopyThreads;
      c.group_cols = kFfmaGroupCols;
      return c;
    }
    case KernelId::kSpmmT4x16:
      return SpmmTConfig<SpmmT4x16>(kernel);
    case KernelId::kSpmmT2x16:
      return SpmmTConfig<SpmmT2x16>(kernel);
    case KernelId::kSpmmT1x16:
      return SpmmTConfig<SpmmT1x16>(kernel);
    case KernelId::kSpmmT4x8:
      return SpmmTConfig<SpmmT4x8>(kernel);
    case KernelId::kSddmm64x128Window:
    case KernelId::kSddmm64x128Gather:
      return SddmmConfig<SddmmLarge>(kernel, element_bytes);
    case KernelId::kSddmm32x32Window:
    case KernelId::kSddmm32x32Gather:
      return SddmmConfig<SddmmSmall>(kernel, element_bytes);
    case KernelId::kAuto:
    case KernelId::kSpmmMma128x128Window:
    case KernelId::kSpmmMma128x128Gather:
    case KernelId::kSpmmMma64x64Window:
    case KernelId::kSpmmMma64x64Gather:
    case KernelId::kSpmmSkinny8:
    case KernelId::kSpmmSkinny16:
    case KernelId::kSpmmSkinny32:
    case KernelId::kSpmmSkinny64:
    case KernelId::kSpmmSkinnyBulk8:
    case KernelId::kSpmmSkinnyBulk16:
    case KernelId::kSpmmSkinnyBulk32:
    case KernelId::kSpmmSkinnyBulk64:
    case KernelId::kSpmmHopper256x128:
    case KernelId::kSpmmHopper128x128:
    case KernelId::kSpmmHopper256x64x2:
    case KernelId::kSpmmHopper128x64x2:
    case KernelId::kSpmmHopper64x128:
    case KernelId::kSpmmHopper64x64x2:
    case KernelId::kSddmmHopper256x128:
    case KernelId::kSddmmHopper128x128:
    case KernelId::kSddmmHopper128x64x2:
    case KernelId::kSddmmHopper64x128:
    case KernelId::kSddmmHopper64x64x2:
    case KernelId::kSpmmShort128x256:
    case KernelId::kSpmmSplit64x256:
    case KernelId::kSddmmSplit64x256:
    case KernelId::kSddmmSplit32x256:
    case KernelId::kSpmmTf32256x128:
    case KernelId::kSpmmTf32128x128:
    case KernelId::kSpmmTf32256x64x2:
    case KernelId::kSpmmTf32128x64x2:
    case KernelId::kSpmmTHopper128:
    case KernelId::kSpmmTHopper64:
    case KernelId::kSpmmTHopper32:
    case KernelId::kSpmmTHopper16:
    case KernelId::kSpmmTHopper128HiLo:
    case KernelId::kSpmmTHopper64HiLo:
    case KernelId::kSpmmTHopper32HiLo:
    case KernelId::kSpmmTHopper16HiLo:
      break;
  }
  return Config{};
}

void Finish(const Problem& p, Config& c) {
  const int32_t length = EffectiveVectorLength(p);
  c.groups_in_tile = UnitsTouched(c.block_cols, length);
  c.shared_group = p.op != Op::kSpmmT && c.group_cols == 0 && length % c.thread_cols == 0;
  c.shared_bytes = MakeSharedLayout(p.op, c, p.m, ByteWidth(p.dtype)).bytes;
}

// Everything about a configuration except stages and split.
std::vector<Config> Shapes(const Problem& p, const KernelInfo& kernel) {
  std::vector<Config> shapes;
  const bool mma = IsMma(kernel.id);
  const Config base = mma ? MmaConfig(p, kernel) : BaseConfig(kernel, ByteWidth(p.dtype));
  if (p.op == Op::kSpmm && kernel.staging == Staging::kWindow) {
    const int32_t most = mma ? 128 : 64;
    for (int32_t windows = 1; windows == 1 || windows * p.n <= most; windows *= 2) {
      Config c = base;
      c.block_windows = windows;
      c.block_kept = windows * p.n;
      shapes.push_back(c);
    }
  } else if (p.op == Op::kSpmm) {
    for (int32_t slots : {8, 16, 32, 64, 128}) {
      // Each family where it has whole products, and where longer steps were found to pay.
      if (mma ? slots < kMmaSlots : slots > 32) continue;
      Config c = base;
      c.block_kept = slots;
      c.block_windows = UnitsTouched(slots, p.n);
      shapes.push_back(c);
    }
  } else if (p.op == Op::kSpmmT) {
    for (int32_t row_warps : {1, 2, 4}) {
      for (int32_t window_warps : {1, 2, 4, 6, 8}) {
        if (row_warps * window_warps > SpmmT4x16::kMaxThreads / 32) continue;
        for (int32_t windows = 1; windows == 1 || windows * p.n <= base.warp_kept; windows *= 2) {
          Config c = base;
          c.row_warps = row_warps;
          c.warp_windows = windows;
          c.threads = 32 * row_warps * window_warps;
          c.block_rows = base.block_rows * row_warps;
          c.block_windows = windows * window_warps;
          c.block_kept = c.block_windows * p.n;
          shapes.push_back(c);
        }
      }
    }
  } else {
    Config c = base;
    c.block_windows = UnitsTouched(c.block_kept, p.n);
    shapes.push_back(c);
  }
  return shapes;
}

int64_t ResultElements(const Problem& p) {
  const int64_t per_batch = p.op == Op::kSpmm    ? p.rows * p.cols
                            : p.op == Op::kSpmmT ? p.rows * p.depth
                                                 : p.kept * p.cols;
  return p.batch * per_batch;
}

// What rules a kernel out whatever its configuration, or kChosen.
Verdict CheckKernel(const Problem& p, const Device& device, const KernelInfo& kernel) {
  if (p.values_transposed != IsTf32(kernel.id)) return Verdict::kTransposed;
  if (device.arch == 0) return Verdict::kArch;
  if (p.dtype == DType::kFloat64 || p.result_dtype == DType::kFloat64) return Verdict::kDtype;
  if (std::max({p.rows, p.depth, p.cols, p.kept}) > kMaxDimension) return Verdict::kTooLarge;
  if (NeedsSm90a(kernel.id) && !device.wgmma) return Verdict::kWgmma;
  if (IsShort(kernel.id)) return ShortReason(p).empty() ? Verdict::kChosen : Verdict::kShort;
  if (IsSplit(kernel.id)) {
    return SplitReason(p, kernel.id).empty() ? Verdict::kChosen : Verdict::kSplit;
  }
  if (IsHopper(kernel.id)) {
    return HopperReason(p, kernel.id).empty() ? Verdict::kChosen : Verdict::kHopper;
  }
  if (IsMma(kernel.id)) {
    return MmaReason(p, kernel.id).empty() ? Verdict::kChosen : Verdict::kMma;
  }
  if (IsFfma(kernel.id)) return FfmaReason(p).empty() ? Verdict::kChosen : Verdict::kFfma;
  if (IsSkinny(kernel.id)) {
    return SkinnyReason(p, kernel.id).empty() ? Verdict::kChosen : Verdict::kSkinny;
  }
  const int32_t thread_cols = BaseConfig(kernel, ByteWidth(p.dtype)).thread_cols;
  if (p.op == Op::kSpmm && kernel.staging == Staging::kGather &&
      EffectiveVectorLength(p) % thread_cols != 0) {
    return Verdict::kMixedGroups;
  }
  return Verdict::kChosen;
}

// The fastest legal configuration of one kernel.
Candidate BestOf(const Problem& p, const Device& device, const KernelInfo& kernel,
                 int64_t workspace_bytes) {
  Candidate best{&kernel, CheckKernel(p, device, kernel), Config{}, 0.0};
  if (best.verdict != Verdict::kChosen) return best;
  if (IsHopper(kernel.id)) {
    best.config = HopperConfig(p, kernel.id, device);
    best.cycles = HopperCycles(p, device, best.config);
    return best;
  }
  if (IsShort(kernel.id)) {
    best.config = ShortConfig(p, device);
    best.cycles = ShortCycles(p, device, best.config);
    return best;
  }
  if (IsSplit(kernel.id)) {
    best.config = SplitConfig(p, kernel.id, device);
    best.cycles = SplitCycles(p, device, best.config);
    return best;
  }
  if (IsSkinny(kernel.id)) return BestSkinny(p, device, kernel, workspace_bytes);
  best.verdict = Verdict::kSharedMemory;
  const int64_t partial_bytes = std::max<int64_t>(ResultElements(p), 1) * 4;
  for (Config c : Shapes(p, kernel)) {
    for (int32_t stages : {2, 3, 1, 4, 6}) {
      if (stages > 3 && !IsMma(kernel.id) && !IsFfma(kernel.id)) break;
      c.stages = stages;
      c.split = 1;
      Finish(p, c);
      if (c.shared_bytes > device.block_shared_bytes) {
        if (best.verdict == Verdict::kSharedMemory &&
            (best.config.shared_bytes == 0 || c.shared_bytes < best.config.shared_bytes)) {
          best.config = c;
        }
        continue;
      }
      const int32_t steps = Steps(p, c);
      for (int32_t split : kSplits) {
        if (split > 1 && (split > steps || split * partial_bytes > workspace_bytes)) break;
        c.split = split;
        const double cycles = IsMma(kernel.id)    ? MmaCycles(p, device, c)
                              : IsFfma(kernel.id) ? FfmaCycles(p, device, c)
                                                  : EstimateCycles(p, device, c);
        if (best.verdict != Verdict::kChosen || cycles < best.cycles) {
          best = {&kernel, Verdict::kChosen, c, cycles};
        }
      }
    }
  }
  return best;
}

// Where a product has few tiles and a long reduction, which the generic kernels split finer, the
// estimates of the two families can each be wrong by a factor: at 256 rows (H200, float32) the
// generic kernels took up to 1.6 times the estimate, and at 1024 rows a step of the Hopper kernel
// 0.8 of it. With enough tiles there is no doubt: 8:32 at 4096^3, L = 128, in bfloat16 takes
// 0.98 ms by the best generic kernel and 0.066 ms by the Hopper kernel.
constexpr double kTensorCoreDoubt = 2.0;

// The same holds of the skinny kernels, with which a Hopper kernel never competes, because they
// read x row-major, and of those for the tensor cores of a warp.
double Rank(const Candidate& candidate) {
  const KernelId id = candidate.kernel->id;
  const bool doubted = IsHopper(id) || IsShort(id) || IsMma(id) || IsSkinny(id);
  return doubted ? candidate.cycles / kTensorCoreDoubt : candidate.cycles;
}

std::string Kilobytes(int64_t bytes) { return std::to_string(CeilDiv64(bytes, 1024)) + " KB"; }

std::string Sharing(const Config& c) {
  if (c.shared_tiles == 0) return "";
  return ", the last " + std::to_string(c.shared_tiles) + " shared by " +
         std::to_string(c.cluster) + " blocks each";
}

std::string Cycles(double cycles) {
  return std::to_string(static_cast<int64_t>(std::llround(cycles / 1000.0))) + "k cycles";
}

}  // namespace

int32_t EffectiveVectorLength(const Problem& p) {
  if (p.vector_length < p.cols) return p.vector_length;
  constexpr int64_t kWidestTile = 128;
  return static_cast<int32_t>(CeilDiv64(std::max<int64_t>(p.cols, 1), kWidestTile) * kWidestTile);
}

int32_t Steps(const Problem& p, const Config& c) {
  const int64_t extent = p.op == Op::kSpmm ? CeilDiv64(ValidKept(p.depth, p.n, p.m), c.block_kept)
                         : p.op == Op::kSpmmT ? CeilDiv64(p.cols, c.block_cols)
                                              : CeilDiv64(p.rows, c.block_rows);
  return static_cast<int32_t>(extent);
}

TileCounts Tiles(const Problem& p, const Config& c) {
  const auto count = [](int64_t extent, int32_t tile) {
    return static_cast<int32_t>(CeilDiv64(extent, tile));
  };
  if (p.op == Op::kSpmm) return {count(p.rows, c.block_rows), count(p.cols, c.block_cols)};
  if (p.op == Op::kSddmm) return {count(p.kept, c.block_kept), count(p.cols, c.block_cols)};
  return {count(p.rows, c.block_rows), count(CeilDiv64(p.depth, p.m), c.block_windows)};
}

Choice Choose(const Problem& p, int32_t arch, int32_t num_sms, bool wgmma,
              int64_t workspace_bytes) {
  Choice choice{};
  choice.device = DeviceOf(p.arch != 0 ? p.arch : arch, num_sms);
  choice.device.wgmma = choice.device.wgmma && wgmma;
  choice.device.clusters = choice.device.clusters && arch >= 90;
  const KernelId forced = static_cast<KernelId>(p.kernel);
  if (forced != KernelId::kAuto) {
    const KernelInfo* kernel = FindKernel(forced);
    if (kernel == nullptr || kernel->op != p.op) {
      choice.chosen.kernel = kernel;
      choice.chosen.verdict = kernel == nullptr ? Verdict::kUnknownKernel : Verdict::kOtherOp;
      return choice;
    }
  }
  bool found = false;
  for (const KernelInfo& kernel : Kernels()) {
    if (kernel.op != p.op) continue;
    if (forced != KernelId::kAuto && kernel.id != forced) {
      choice.rejected.push_back({&kernel, Verdict::kNotForced, Config{}, 0.0});
      continue;
    }
    Candidate candidate = BestOf(p, choice.device, kernel, workspace_bytes);
    if (candidate.verdict == Verdict::kChosen &&
        (!found || Rank(candidate) < Rank(choice.chosen))) {
      if (found) choice.rejected.push_back(choice.chosen);
      choice.chosen = candidate;
      found = true;
    } else {
      choice.rejected.push_back(candidate);
    }
  }
  for (Candidate& candidate : choice.rejected) {
    if (candidate.verdict == Verdict::kChosen) candidate.verdict = Verdict::kSlower;
  }
  // Without a legal kernel the answer is why the last one that was looked at is not legal.
  for (auto it = choice.rejected.rbegin(); !found && it != choice.rejected.rend(); ++it) {
    if (it->verdict == Verdict::kNotForced) continue;
    choice.chosen = *it;
    found = true;
  }
  return choice;
}

std::string Reason(const Problem& p, const Choice& choice, const Candidate& candidate) {
  constexpr const char* kOps[] = {"spmm", "spmm_t", "sddmm"};
  const Config& c = candidate.config;
  switch (candidate.verdict) {
    case Verdict::kChosen: {
      const TileCounts tiles = Tiles(p, c);
      const int32_t shares = IsSkinny(c.kernel) ? c.split * c.cluster : c.split;
      const int64_t blocks = p.batch * tiles.outer * tiles.inner * shares;
      return (p.kernel != 0 ? "asked for; " : "the fastest by estimate, ") +
             Cycles(candidate.cycles) + ": " + std::to_string(blocks) +
             (IsHopper(c.kernel) || IsShort(c.kernel) || IsSplit(c.kernel)
                  ? " tiles, walked by " + std::to_string(c.blocks) + " blocks" + Sharing(c)
                  : std::string(" blocks")) +
             (IsSkinny(c.kernel) && c.cluster > 1
                  ? " in clusters of " + std::to_string(c.cluster) + ", which share a tile's slots"
                  : "") +
             (c.split > 1 ? " (each reduction split " + std::to_string(c.split) + " ways)" : "") +
             " on " + std::to_string(choice.device.num_sms) + " SMs";
    }
    case Verdict::kSlower:
      return "estimated at " + Cycles(candidate.cycles) + ", the chosen one at " +
             Cycles(choice.chosen.cycles) +
             (candidate.cycles < choice.chosen.cycles
                  ? ", which is preferred unless it seems to take twice as long"
                  : "");
    case Verdict::kOtherOp:
      return "kernel " + std::to_string(p.kernel) + " (" + candidate.kernel->name + ") computes " +
             kOps[static_cast<int>(candidate.kernel->op)] + ", not " + kOps[static_cast<int>(p.op)];
    case Verdict::kUnknownKernel:
      return "there is no CUDA kernel with id " + std::to_string(p.kernel);
    case Verdict::kNotForced:
      return "kernel " + std::to_string(p.kernel) + " was asked for";
    case Verdict::kArch:
      return "the CUDA kernels need compute capability 8.0 or newer";
    case Verdict::kDtype:
      return "the CUDA kernels take float32, bfloat16 and float16, not float64";
    case Verdict::kTransposed:
      return p.values_transposed ? "needs values that are not transposed"
                                 : "needs transposed values";
    case Verdict::kTooLarge:
      return "rows, depth, cols and kept must each be at most " + std::to_string(kMaxDimension);
    case Verdict::kMixedGroups:
      return "gathering needs a vector_length that is a multiple of the thread's " +
             std::to_string(BaseConfig(*candidate.kernel, ByteWidth(p.dtype)).thread_cols) +
             " columns, got " + std::to_string(p.vector_length);
    case Verdict::kSharedMemory:
      return "needs at least " + Kilobytes(c.shared_bytes) + " of shared memory, sm_" +
             std::to_string(choice.device.arch) + " has " +
             Kilobytes(choice.device.block_shared_bytes) + " for a block";
    case Verdict::kWgmma:
      return "needs a device of compute capability 9.0 and code for it (sm_90a) in this build, got "
             "sm_" +
             std::to_string(choice.device.arch);
    case Verdict::kHopper:
      return HopperReason(p, candidate.kernel->id);
    case Verdict::kShort:
      return ShortReason(p);
    case Verdict::kSplit:
      return SplitReason(p, candidate.kernel->id);
    case Verdict::kMma:
      return MmaReason(p, candidate.kernel->id);
    case Verdict::kFfma:
      return FfmaReason(p);
    case Verdict::kSkinny:
      return SkinnyReason(p, candidate.kernel->id);
  }
  return "";
}

int64_t WorkspaceBytes(const Problem& p) {
  const int64_t elements = ResultElements(p);
  if (elements == 0) return 0;
  const int64_t reduction = p.op == Op::kSpmm ? p.kept : p.op == Op::kSpmmT ? p.cols : p.rows;
  const int64_t width = p.op == Op::kSpmmT ? p.depth : p.cols;
  const int64_t height = elements / (p.batch * width);
  const int64_t tiles = p.batch * CeilDiv64(height, 128) * CeilDiv64(width, 128);
  // A share shorter than 32 elements of the reduction costs more than it saves.
  int64_t split = std::min({CeilDiv64(kEnoughTiles, tiles), CeilDiv64(reduction, 32),
                            int64_t{kMaxSplit}, kMaxWorkspaceBytes / (elements * 4)});
  return split < 2 ? 0 : split * elements * 4;
}

bool NeedsSm90a(KernelId kernel) {
  return IsHopper(kernel) || IsShort(kernel) || IsSplit(kernel) || IsSkinnyBulk(kernel);
}

double FewRowsMicroseconds(const Problem& p, bool wgmma) {
  const Choice choice = Choose(p, kDefaultArch, 0, wgmma, WorkspaceBytes(p));
  if (choice.chosen.verdict != Verdict::kChosen) return std::numeric_limits<double>::infinity();
  const double kernel = EstimateMicroseconds(p, choice);
  return p.x_layout == Layout::kRowMajor ? kernel : kernel + TransposeMicroseconds(p);
}

double EstimateMicroseconds(const Problem& p, const Choice& choice) {
  const double kernel = Microseconds(choice.device, choice.chosen.cycles);
  return p.values_transposed ? kernel + TransposeValuesMicroseconds(p) : kernel;
}

bool TransposedValuesPay(const Problem& p, bool wgmma) {
  if (p.kernel != 0) return IsTf32(static_cast<KernelId>(p.kernel));
  if (p.op != Op::kSpmm) return false;
  Problem plain = p, transposed = p;
  plain.values_transposed = false;
  transposed.values_transposed = true;
  transposed.values_cols = p.cols;
  const auto choose = [wgmma](const Problem& q) {
    return Choose(q, kDefaultArch, 0, wgmma, WorkspaceBytes(q));
  };
  const Choice with = choose(transposed);
  if (with.chosen.verdict != Verdict::kChosen) return false;
  const Choice without = choose(plain);
  return without.chosen.verdict != Verdict::kChosen ||
         EstimateMicroseconds(transposed, with) < EstimateMicroseconds(plain, without);
}

bool DensePays(const Problem& p, bool wgmma) {
  if (p.kernel != 0) return false;
  const Choice choice = Choose(p, kDefaultArch, 0, wgmma, WorkspaceBytes(p));
  return choice.chosen.verdict == Verdict::kChosen &&
         Microseconds(choice.device, DenseCycles(p, choice.device)) <
             EstimateMicroseconds(p, choice);
}

}  // namespace jax_nm
