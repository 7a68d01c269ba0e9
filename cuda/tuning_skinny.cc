#include "tuning_skinny.h"

#include <algorithm>
#include <cmath>

#include "kernel_args.h"
#include "skinny_bulk_config.h"
#include "tuning_skinny_bulk.h"

namespace jax_nm {
namespace {

// Shapes of a block: its groups of warps side by side in a group, and groups.
struct Warps {
  int32_t in_group;
  int32_t groups;
};
constexpr Warps kWarps[] = {{1, 4}, {1, 8}, {1, 16}, {2, 2}, {2, 4}, {2, 8},
                            {4, 1}, {4, 2}, {4, 4},  {8, 1}, {8, 2}};

// Those that launch bounds allow.
int32_t Registers(const Config& c, int32_t element) {
  return SkinnyMaxThreads(c.block_rows, element) == 256 ? 255 : 128;
}

// What an SM does for one step of one group of warps.
struct StepCost {
  double bytes;       // from L2 or memory
  double wavefronts;  // of shared memory, one a cycle
  double issued;      // instructions of all warps
};

StepCost CostOfStep(const Problem& p, const Config& c) {
  const int32_t element = ByteWidth(p.dtype);
  const SkinnyLayout layout = MakeSkinnyLayout(c, p.m, element);
  const double rows = std::min<double>(p.rows, c.block_rows);
  const double warps = c.threads / 32.0 / c.kept_warps;
  const double blocks16 = c.block_kept / double(kSkinnySlots);
  const double values = double(c.block_kept) * layout.values_pitch;
  const double lines = rows * layout.line_vectors * 16.0;
  // Lines that are no whole 16 bytes are copied element by element.
  constexpr double kCopySlots = 8.0, kElementSlots = 35.0;
  const auto copying = [&](double bytes, int64_t length) {
    return length * element % 16 == 0 ? kCopySlots * bytes / 512.0
                                      : kElementSlots * bytes / element / 32.0;
  };
  const double copies = copying(values, p.values_cols) + copying(lines, p.depth);
  // Two of the four slots of a load meet in a bank on average.
  constexpr double kConflicts = 2.1;
  double reads = 0.0, computed = 0.0;  // of a warp, for 16 slots
  if (element == 2) {
    const int32_t group_cols = SkinnyGroupCols(c.shared_group, element);
    const double parts = double(SkinnyWarpCols(c.block_rows, element)) / group_cols;
    const double gathers = c.block_rows / 8 * 4;
    const double tiles = group_cols / 16;
    reads = parts * (gathers * kConflicts + 4.0 * tiles + 1.0);
    computed = parts * (gathers * 2.5 + 25.0 + tiles * (3.0 + c.block_rows / 8));
  } else {
    // A half-warp has 8 of 16 slots.
    reads = 8.0 * (c.block_rows + 4.0);
    computed = 8.0 * (c.block_rows * 5.0 + 10.0);
  }
  return {values + lines + double(c.groups_in_tile) * c.block_kept,
          (values + lines) / 128.0 + warps * blocks16 * reads,
          copies + warps * (60.0 + blocks16 * computed)};
}

// Chosen to follow an H200, taking 1.755 GHz for its clock: of 120 launches in bfloat16 (1, 16, 32
// and 64 rows; 8192,8192, 28672,8192 and 4096,14336 columns and depth; 16:32 and 4:32, L = 32) the
// measured times are 0.72 to 1.31 of the estimates, and for 21 of the 24 problems the choice is the
// fastest launch or within 5 % of it.
double SkinnyCycles(const Problem& p, const Device& device, const Config& c) {
  constexpr double kLaunch = 8500.0;
  constexpr double kMemoryShare = 0.85;      // of the bandwidth on paper
  constexpr double kLoadBytesPerCycle = 36;  // that an SM gets from L2
  constexpr double kLatency = 1200.0;        // of a copy from memory under load
  constexpr double kStepLatency = 400.0;     // of a step of one group, beside its instructions
  constexpr double kIssueShare = 0.026;      // of the issue slots, that a resident warp fills,
  constexpr double kMostIssued = 0.5;        // and that all of them do
  constexpr double kRound = 4000.0;          // of blocks that start when others are done
  constexpr double kRow = 0.0035;            // of everything, for each row of the tile
  constexpr double kSecondLaunch = 4000.0;
  constexpr double kShare = 1500.0, kPeerBytesPerCycle = 14.0;  // as of the Hopper kernels
  const int32_t element = ByteWidth(p.dtype);
  const TileCounts tiles = Tiles(p, c);
  const double owned = double(p.batch) * tiles.outer * tiles.inner;
  const int32_t shares = c.split * c.cluster;
  const double per_sm = std::ceil(owned * shares / SkinnySms(device, c.cluster));
  const double resident =
      std::min<double>(per_sm, SkinnyResident(device, c, Registers(c, element)));
  const double steps = double(CeilDiv64(Steps(p, c), shares));
  const double rounds = std::ceil(steps / c.kept_warps);  // of a group
  const StepCost step = CostOfStep(p, c);

  const double weight = double(p.batch) * p.kept * (double(p.cols) * element + p.groups);
  const double memory =
      weight * (1.0 + 0.3 * (tiles.outer - 1)) / (kMemoryShare * device.bytes_per_cycle);
  const double loaded = per_sm * steps * step.bytes / kLoadBytesPerCycle;
  const double in_flight = resident * c.kept_warps * (c.stages - 1);  // steps
  const double waited = per_sm * steps * kLatency / in_flight;
  const double shared = per_sm * steps * step.wavefronts;
  const double schedulers = device.fp32_lanes / 32.0;
  const double share = std::min(kMostIssued, kIssueShare * resident * c.threads / 32.0);
  const double issued = per_sm * steps * step.issued / schedulers / share;
  const double chained = std::ceil(per_sm / resident) * rounds *
                         (kStepLatency + step.issued / (c.threads / 32.0 / c.kept_warps) * 2.0);
  // What takes part of the time of something else delays it a little.
  double sum = 0.0;
  for (const double part : {memory, loaded, waited, shared, issued, chained}) {
    sum += std::pow(part, 4.0);
  }
  const double stream =
      std::sqrt(std::sqrt(sum)) * (1.0 + (element == 2 ? kRow * c.block_rows : 0.0));

  const double tile_bytes = 4.0 * std::min<double>(p.rows, c.block_rows) * c.block_cols;
  double cycles = kLaunch + stream + 2.0 * tile_bytes * c.kept_warps / 128.0 +
                  (std::ceil(per_sm / resident) - 1.0) * kRound;
  if (c.cluster > 1) {
    cycles += kShare + tile_bytes * (c.cluster - 1) / c.cluster / kPeerBytesPerCycle;
  }
  if (c.split > 1) {
    cycles += kSecondLaunch + owned * tile_bytes * (c.split + 1) / (16.0 * device.num_sms);
  }
  return cycles;
}

Config ShapeOf(const Problem& p, KernelId kernel, const Warps& warps, int32_t slots) {
  const int32_t element = ByteWidth(p.dtype), rows = SkinnyRows(kernel);
  const int32_t length = EffectiveVectorLength(p);
  Config c{};
  c.kernel = kernel;
  c.staging = Staging::kWindow;
  c.block_rows = rows;
  c.block_cols = warps.in_group * SkinnyWarpCols(rows, element);
  c.block_kept = slots;
  c.block_windows = UnitsTouched(slots, p.n);
  c.threads = 32 * warps.in_group * warps.groups;
  c.kept_warps = warps.groups;
  c.split = 1;
  c.cluster = 1;
  c.groups_in_tile = UnitsTouched(c.block_cols, length);
  c.shared_group = element == 4 || length % SkinnyGroupCols(true, element) == 0;
  return c;
}

// Everything about the configurations of a kernel except stages and shares.
std::vector<Config> Shapes(const Problem& p, KernelId kernel) {
  if (IsSkinnyBulk(kernel)) return SkinnyBulkShapes(p, kernel);
  const int32_t element = ByteWidth(p.dtype);
  std::vector<Config> shapes;
  for (const Warps& warps : kWarps) {
    if (32 * warps.in_group * warps.groups > SkinnyMaxThreads(SkinnyRows(kernel), element)) {
      continue;
    }
    for (int32_t slots : {16, 32, 64}) {
      const Config c = ShapeOf(p, kernel, warps, slots);
      // The units of a line of values change places within 128 bytes.
      if (c.block_cols * element >= 128) shapes.push_back(c);
    }
  }
  return shapes;
}

void SetStages(const Problem& p, Config& c, int32_t stages) {
  c.stages = stages;
  c.shared_bytes = IsSkinnyBulk(c.kernel) ? MakeSkinnyBulkLayout(c, p.m).bytes
                                          : MakeSkinnyLayout(c, p.m, ByteWidth(p.dtype)).bytes;
}

}  // namespace

// Blocks of clusters of 4 do not reach every SM, see tuning_hopper.cc.
int32_t SkinnySms(const Device& device, int32_t cluster) {
  return cluster <= 2 ? device.num_sms : device.num_sms * 10 / 11;
}

int32_t SkinnyResident(const Device& device, const Config& c, int32_t registers) {
  constexpr int32_t kSmRegisters = 65536;
  const int64_t by_shared = device.sm_shared_bytes / (c.shared_bytes + 1024);
  const int64_t by_registers = kSmRegisters / (registers * c.threads);
  return static_cast<int32_t>(std::max<int64_t>(1, std::min(by_shared, by_registers)));
}

std::string SkinnyReason(const Problem& p, KernelId kernel) {
  if (p.rows > kSkinnyMaxRows) {
    return "needs at most " + std::to_string(kSkinnyMaxRows) + " rows, got " +
           std::to_string(p.rows);
  }
  const int32_t element = ByteWidth(p.dtype);
  if (IsSkinnyBulk(kernel)) {
    if (element == 4) return "needs bfloat16 or float16 operands";
  } else if (p.x_layout != Layout::kRowMajor) {
    return "needs a row-major x, got a feature-major one";
  }
  if (element == 4 && SkinnyRows(kernel) > 32) {
    return "needs bfloat16 or float16 operands; float32 has tiles of at most 32 rows";
  }
  if (p.batch == 0 || p.rows == 0 || p.cols == 0 || p.depth == 0) {
    return "needs something to multiply, got an empty operand";
  }
  const int32_t columns = SkinnyGroupCols(false, element);
  if (EffectiveVectorLength(p) % columns != 0) {
    return "needs a vector_length that is a multiple of " + std::to_string(columns) +
           " or spans all columns, got " + std::to_string(p.vector_length);
  }
  return "";
}

Candidate BestSkinny(const Problem& p, const Device& device, const KernelInfo& kernel,
                     int64_t workspace_bytes) {
  Candidate best{&kernel, Verdict::kSharedMemory, Config{}, 0.0};
  const bool bulk = IsSkinnyBulk(kernel.id);
  const int64_t partial_bytes = p.batch * p.rows * p.cols * 4;
  const auto consider = [&](const Config& c) {
    const double cycles = bulk ? SkinnyBulkCycles(p, device, c) : SkinnyCycles(p, device, c);
    if (best.verdict != Verdict::kChosen || cycles < best.cycles) {
      best = {&kernel, Verdict::kChosen, c, cycles};
    }
  };
  for (Config c : Shapes(p, kernel.id)) {
    if (bulk && c.block_kept == kSkinnySlots && best.verdict == Verdict::kChosen) break;
    // As many stages as there is room for, if one block or two share an SM.
    int32_t before = 0;
    for (int32_t resident : {2, 1}) {
      const int64_t room =
          std::min(device.block_shared_bytes, device.sm_shared_bytes / resident - 1024);
      int32_t stages = bulk ? kSkinnyBulkMaxStages : kSkinnyMaxStages;
      for (SetStages(p, c, stages); c.shared_bytes > room && stages > 2;) {
        SetStages(p, c, --stages);
      }
      if (c.shared_bytes > room) {
        if (resident == 1 && best.verdict == Verdict::kSharedMemory &&
            (best.config.shared_bytes == 0 || c.shared_bytes < best.config.shared_bytes)) {
          best.config = c;
        }
        continue;
      }
      if (stages == before) continue;
      before = stages;
      const int32_t steps = Steps(p, c);
      for (int32_t shares : {1, 2, 4, 8}) {
        if (shares > std::max(steps, 1)) break;
        c.split = shares;
        if (shares == 1 || shares * partial_bytes <= workspace_bytes) consider(c);
        c.split = 1;
        if (shares > 1 && shares <= 4 && device.clusters) {
          c.cluster = shares;
          consider(c);
          c.cluster = 1;
        }
      }
    }
  }
  return best;
}

}  // namespace jax_nm
