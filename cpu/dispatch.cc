#include "dispatch.h"

#include <algorithm>

namespace jax_nm {
namespace {

// What a task packs of x (or sums of dx) is read by every group: it should stay in the second-level
// cache. Servers have 1 MiB and more of it per core; half is left to the other blocks.
constexpr int64_t kXBlockBytes = 512 * 1024;
constexpr int64_t kTileCols = 128;

// Upper limits of a block. Few slots keep what a group gathers (16 KiB for 64 slots and 64 rows) in
// the first-level cache, where all columns of the group read it again; many rows spread the packing
// of values, many columns that of x. sddmm keeps its sums in memory, and packs two operands.
struct Limits {
  int64_t rows;
  int64_t cols;
  int64_t slots;
};

// float32, 512 x 4096 x 4096 at 8:32, L = 32, one core of a Zen 5 server with 240 GFLOP/s in a
// dense product: 192 (spmm), 196 (spmm_t) and 178 (sddmm) GFLOP/s. spmm {256, 512, 128}: 160;
// spmm_t {256, -, 128}: 164; sddmm {512, 512, 64}: 167.
constexpr Limits LimitsOf(Op op) {
  switch (op) {
    case Op::kSpmm:
      return {512, 1024, 64};
    case Op::kSpmmT:
      return {512, 1024, 64};
    case Op::kSddmm:
      return {256, 512, 128};
  }
  return {};
}

// The skinny kernel, in columns and slots of a pass. Each slot is a stream along a row of values.
// Rows a multiple of 4 KiB apart share a set of the first-level cache, which has 8 to 12 ways: with
// 16 slots the lines fetched ahead push each other out (one row, 4096 x 4096 at 8:32, L = 32, one
// core: 1.0 ms, and 0.5 with 8).
constexpr int64_t kSkinnySlots = 8;
constexpr int64_t kSkinnyCols = 512;
// The most rows it takes. Same weight, 16 rows: 1.5 ms, and 2.1 with the panel kernel; 32 rows: 3.1
// and 2.5.
constexpr int64_t kSkinnyRows = 16;

// Per thread, so that the last ones to finish do not keep the others waiting for long.
constexpr int64_t kTasksPerThread = 4;
// Multiply-adds that outweigh waking a thread: a few microseconds of each.
constexpr int64_t kTaskWork = 256 * 1024;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }
int64_t RoundDown(int64_t a, int64_t b) { return a / b * b; }

int64_t ComputeWidth(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

const KernelTable* Table(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return &kPortableKernels;
#if defined(JAX_NM_HAVE_AVX2)
    case Isa::kAvx2:
      return &kAvx2Kernels;
#endif
#if defined(JAX_NM_HAVE_AVX512)
    case Isa::kAvx512:
      return &kAvx512Kernels;
#endif
#if defined(JAX_NM_HAVE_NEON)
    case Isa::kNeon:
      return &kNeonKernels;
#endif
    default:
      return nullptr;
  }
}

bool RunsHere(Isa isa) {
  switch (isa) {
#if defined(JAX_NM_HAVE_AVX2)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
#endif
#if defined(JAX_NM_HAVE_AVX512)
    case Isa::kAvx512:
      return RunsHere(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
#endif
    default:
      return Table(isa) != nullptr;
  }
}

std::string Names(const std::vector<Isa>& isas) {
  std::string names;
  for (Isa isa : isas) names += (names.empty() ? "" : ", ") + std::string(IsaName(isa));
  return names;
}

int64_t ActiveKept(const Problem& p) {
  int64_t kept = p.kept;
  while (kept > 0 && IsPadding(p.depth, p.n, p.m, kept - 1)) --kept;
  return kept;
}

// Columns packed at a time: whole groups while they fit, so that few groups are cut in two.
int64_t TileCols(const Problem& p) {
  return p.vector_length >= kTileCols ? kTileCols : RoundDown(kTileCols, p.vector_length);
}

int64_t Tasks(const Problem& p, const Config& c) {
  switch (p.op) {
    case Op::kSpmm:
      return p.batch * c.row_blocks * c.col_blocks;
    case Op::kSpmmT:
      return p.batch * c.row_blocks * c.window_blocks;
    case Op::kSddmm:
      return p.batch * c.window_blocks * c.col_blocks;
  }
  return 0;
}

void CountBlocks(const Problem& p, Config* c) {
  c->row_blocks = CeilDiv(p.rows, c->block_rows);
  c->col_blocks = CeilDiv(p.cols, c->block_cols);
  c->window_blocks = CeilDiv(CeilDiv(p.depth, p.m), c->block_windows);
  c->tasks = Tasks(p, *c);
}

// Halves what the tasks of this operation own, columns first, until every thread has some.
void SplitForThreads(const Problem& p, int64_t panel_rows, int64_t threads, Config* c) {
  CountBlocks(p, c);
  const int64_t wanted =
      std::min(kTasksPerThread * threads, p.batch * p.rows * p.kept * p.cols / kTaskWork);
  while (c->tasks > 0 && c->tasks < wanted) {
    if (p.op != Op::kSpmmT && c->block_cols > c->tile_cols) {
      c->block_cols = RoundUp(c->block_cols / 2, c->tile_cols);
    } else if (p.op != Op::kSddmm && c->block_rows > panel_rows) {
      c->block_rows = RoundUp(c->block_rows / 2, panel_rows);
    } else if (p.op != Op::kSpmm && c->block_windows > 1) {
      c->block_windows = CeilDiv(c->block_windows, 2);
    } else {
      break;
    }
    CountBlocks(p, c);
  }
}

Config MakeSkinnyConfig(const Problem& p, const KernelTable& table, int64_t threads) {
  const int64_t width = ComputeWidth(p.dtype);
  const int64_t lanes = table.vector_bytes / width;
  Config c{};
  c.skinny_slots = kSkinnySlots;
  c.active_kept = ActiveKept(p);
  c.tile_cols = TileCols(p);
  c.block_rows = kSkinnyRows;
  c.block_cols = RoundUp(std::clamp<int64_t>(p.cols, 1, kSkinnyCols), c.tile_cols);
  c.block_windows = std::max<int64_t>(CeilDiv(p.depth, p.m), 1);
  SplitForThreads(p, kSkinnyRows, threads, &c);
  c.y_offset = RoundUp(p.rows * p.depth * width, kScratchAlignment);
  c.values_offset =
      c.y_offset + RoundUp(p.rows * RoundUp(c.block_cols, lanes) * width, kScratchAlignment);
  c.sources_offset = c.values_offset;
  c.scratch_bytes = c.sources_offset + RoundUp(c.skinny_slots * 4, kScratchAlignment);
  return c;
}

bool IsSkinny(const Problem& p, const KernelTable& table) {
  return p.op == Op::kSpmm && p.rows <= kSkinnyRows &&
         p.vector_length >= table.vector_bytes / ComputeWidth(p.dtype);
}

Config MakeConfig(const Problem& p, const KernelTable& table, int64_t threads) {
  const Limits limits = LimitsOf(p.op);
  const int64_t width = ComputeWidth(p.dtype);
  const int64_t lanes = table.vector_bytes / width;
  const int64_t panel_rows = lanes * table.panel_vectors;
  const int64_t windows = std::max<int64_t>(CeilDiv(p.depth, p.m), 1);
  const int64_t padded_rows = RoundUp(std::max<int64_t>(p.rows, 1), lanes);

  Config c{};
  c.active_kept = ActiveKept(p);
  c.tile_cols = TileCols(p);
  c.block_cols = RoundUp(std::clamp<int64_t>(p.cols, 1, limits.cols), c.tile_cols);

  // The depth of a block comes from the slots, but so that one panel of that depth fits; then as
  // many rows as fit beside it.
  const int64_t max_depth = kXBlockBytes / (width * std::min(panel_rows, padded_rows));
  c.block_windows = std::clamp<int64_t>(std::min(limits.slots / p.n, max_depth / p.m), 1, windows);
  const int64_t max_rows = kXBlockBytes / (width * c.block_windows * p.m);
  c.block_rows = std::clamp(RoundDown(std::min(max_rows, limits.rows), panel_rows), panel_rows,
                            RoundUp(padded_rows, panel_rows));
  SplitForThreads(p, panel_rows, threads, &c);

  const int64_t block_kept = c.block_windows * p.n;
  const int64_t block_depth = c.block_windows * p.m;
  const int64_t rows = std::min(c.block_rows, padded_rows);
  const int64_t y_cols = p.op == Op::kSpmmT ? c.tile_cols : c.block_cols;
  const int64_t values_cols = p.op == Op::kSddmm ? c.block_cols : c.tile_cols;
  c.y_offset = RoundUp(rows * block_depth * width, kScratchAlignment);
  c.values_offset = c.y_offset + RoundUp(rows * y_cols * width, kScratchAlignment);
  c.sources_offset = c.values_offset + RoundUp(block_kept * values_cols * width, kScratchAlignment);
  c.scratch_bytes = c.sources_offset + RoundUp(block_kept * 4, kScratchAlignment);
  return c;
}

TaskFunction Function(Op op, bool skinny, const KernelTable& table) {
  switch (op) {
    case Op::kSpmm:
      return skinny ? table.spmm_skinny : table.spmm;
    case Op::kSpmmT:
      return table.spmm_t;
    case Op::kSddmm:
      return table.sddmm;
  }
  return nullptr;
}

std::string Reason(const Problem& p, const Plan& plan, bool chosen) {
  const std::string isa =
      std::string(IsaName(plan.isa)) +
      (chosen ? " is the widest instruction set of this CPU and build" : " was asked for");
  if (plan.config.skinny_slots > 0) {
    return isa + "; at most " + std::to_string(kSkinnyRows) +
           " rows: values are read once, straight from memory, with vectors along columns.";
  }
  return isa + "; blocks of up to " + std::to_string(plan.config.block_rows) + " rows x " +
         std::to_string(plan.config.block_windows * p.m) +
         " of depth are packed so that they stay in the second-level cache, with vectors along "
         "rows.";
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAuto:
      return "auto";
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
  }
  return "unknown";
}

std::vector<Isa> BuiltIsas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kNeon}) {
    if (Table(isa) != nullptr) isas.push_back(isa);
  }
  return isas;
}

Isa BestIsa() {
  static const Isa best = [] {
    Isa widest = Isa::kPortable;
    for (Isa isa : BuiltIsas()) {
      if (RunsHere(isa)) widest = isa;
    }
    return widest;
  }();
  return best;
}

Plan MakePlan(const Problem& problem, int64_t threads) {
  Plan plan{};
  const Isa forced = static_cast<Isa>(problem.kernel);
  plan.isa = forced == Isa::kAuto ? BestIsa() : forced;
  const KernelTable* table = Table(plan.isa);
  if (table == nullptr) {
    plan.error = "kernel " + std::to_string(problem.kernel) + " (" + IsaName(plan.isa) +
                 ") is not in this build; it has " + Names(BuiltIsas()) + " (0 chooses)";
    return plan;
  }
  if (!RunsHere(plan.isa)) {
    plan.error = std::string("this CPU cannot run the ") + IsaName(plan.isa) +
                 " kernels; the widest it can run is " + IsaName(BestIsa()) + " (0 chooses)";
    return plan;
  }
  const bool skinny = IsSkinny(problem, *table);
  plan.config =
      skinny ? MakeSkinnyConfig(problem, *table, threads) : MakeConfig(problem, *table, threads);
  plan.function = Function(problem.op, skinny, *table);
  plan.kernel = std::string(skinny ? "skinny_" : "panel_") + IsaName(plan.isa);
  plan.why = Reason(problem, plan, forced == Isa::kAuto);
  return plan;
}

void DecodeSources(const Problem& problem, const uint8_t* indices, int64_t first_slot,
                   int64_t slots, int32_t* sources) {
  const int64_t first_depth = first_slot / problem.n * problem.m;
  for (int64_t j = 0; j < slots;) {
    const int64_t slot = first_slot + j;
    const int32_t base = static_cast<int32_t>(slot / problem.n * problem.m - first_depth);
    // The largest index of all clamps to the last source of the window.
    const int32_t last = static_cast<int32_t>(
        Source(problem.depth, problem.n, problem.m, slot, UINT8_MAX) - first_depth);
    const int64_t end = std::min<int64_t>(j + problem.n - slot % problem.n, slots);
    for (; j < end; ++j) sources[j] = std::min<int32_t>(base + indices[j], last);
  }
}

}  // namespace jax_nm
