#include "tuning_cost.h"

#include <algorithm>
#include <cmath>

namespace jax_nm {
namespace {

// The kernels are bound by the instructions that an SM issues. A step is therefore priced in issue
// slots of one warp, counted in the machine code for sm_90, and turned into cycles by the share of
// issue slots that so many resident warps fill. On an H200, float32 spmm at 4096^3, taking
// 1.755 GHz for its clock: counted / measured time is 0.67 to 0.83 with 16 warps on an SM, and
// about 0.77 for most.

// Share of an SM's issue slots that are used. Chosen to follow those measurements: 0.77 with 16
// warps, 0.55 to 0.62 with 10, 0.54 with 8 (0.40 to 0.52 at 256 rows).
double IssueShare(double warps) { return std::min({0.78, 0.28 + 0.031 * warps, 0.065 * warps}); }

// A 16-byte asynchronous copy: table entry, comparison, address, and a share of the loop and of the
// fence in front of a batch.
constexpr double kCopySlots = 11.0;
// One element of an operand that lies across the tile or is not aligned, by its own 64-bit address.
constexpr double kElementSlots = 35.0;
// One entry of a table of decoded indices, read and written.
constexpr double kDecodeSlots = 45.0;
// The barrier, and the start of the three loops of a step.
constexpr double kStepSlots = 90.0;

// Issue slots that pass while shared memory returns 4 bytes to each lane of a warp. Chosen for
// spmm_t_1x16, whose estimates are 0.89 to 0.96 of the measured times with it (H200, float32).
constexpr double kReturnSlots = 1.8;

// Bytes per cycle that an SM gets from L2 when all of them ask: 9 TB/s on 132 SMs at 1.75 GHz.
constexpr double kLoadBytesPerCycle = 36.0;
// Cycles from a global load to its use.
constexpr double kLatency = 800.0;
constexpr double kLaunch = 4000.0;
// Blocks of 4 x 4 threads that all start at once: spmm 8:32 at 256,4096,4096 on an H200 takes 1.2
// times what these costs explain with 32 x 32 tiles; larger tiles and more rows do not.
constexpr double kSmallTilesAtOnce = 1.2;

// What one step of one block asks of the SM.
struct StepCost {
  double slots;  // of one warp
  double bytes;
};

// Reading an element costs a part of a vector load, and a conversion if it is half precision.
double ReadSlots(const Problem& p, double elements) {
  return ByteWidth(p.dtype) == 4 ? elements / 4.0 : elements * (1.0 + 1.0 / 8.0);
}

// Copying `elements` of an operand into shared memory, per thread.
double StageSlots(const Problem& p, const Config& c, Layout layout, double elements) {
  return layout == Layout::kFeatureMajor
             ? kCopySlots * elements * ByteWidth(p.dtype) / 16.0 / c.threads
             : kElementSlots * elements / c.threads;
}

// A step at which a thread decodes few indices still makes its warp wait for them.
double TableSlotsCost(const Config& c, double entries) {
  return kDecodeSlots * std::max(0.5, entries / c.threads);
}

// Gathered features use a part of each sector of a row-major operand, consecutive ones more of it.
double SectorFactor(Layout layout, const Config& c) {
  return layout == Layout::kFeatureMajor ? 1.0 : c.staging == Staging::kGather ? 8.0 : 2.0;
}

StepCost SpmmStep(const Problem& p, const Config& c) {
  const SharedLayout layout = MakeSharedLayout(p.op, c, p.m, ByteWidth(p.dtype));
  const double slots = layout.second_count;
  const double rows = c.thread_rows, cols = c.thread_cols;
  const bool window = c.staging == Staging::kWindow;
  // 8 x 8: 71 for 64 multiplications when gathering, 74 from windows. Columns of different groups
  // read their rows each for itself: 118, and the lanes of a warp then meet in the banks.
  const double inner =
      c.shared_group ? rows * cols + ReadSlots(p, rows + cols) + (window ? 6.0 : 3.0)
                     : 2.0 * (cols * (rows + ReadSlots(p, rows) + 4.0) + ReadSlots(p, cols) + 4.0);
  const double x_elements = double(layout.first_count) * c.block_rows;
  const double value_elements = slots * c.block_cols;
  return {slots * inner + StageSlots(p, c, p.x_layout, x_elements) +
              StageSlots(p, c, Layout::kFeatureMajor, value_elements) +
              TableSlotsCost(c, c.groups_in_tile * slots),
          (SectorFactor(p.x_layout, c) * x_elements + value_elements) * ByteWidth(p.dtype)};
}

StepCost SpmmTStep(const Problem& p, const Config& c) {
  constexpr double kVector = 4.0;
  const double rows = c.thread_rows, kept = c.thread_kept;
  const double chunks = CeilDiv(c.warp_windows * p.n, c.warp_kept);
  const double groups = std::max(1.0, double(c.block_cols) / EffectiveVectorLength(p));
  // 2 x 16: 157 for 128 multiplications, four columns at a time where groups are whole multiples of
  // four; adding a group's sums to dx takes a table entry, an address, a load, a store and `rows`
  // additions.
  const bool vectors = EffectiveVectorLength(p) % 4 == 0;
  const double issued = vectors
                            ? kVector * rows * kept + ReadSlots(p, kVector * (rows + kept)) + 9.0
                            : kVector * (rows * kept + ReadSlots(p, rows) + kept + 12.0);
  // Shared memory returns 4 bytes a cycle to each lane of one warp: 4 x 8 reads 48 of them for 128
  // multiplications, 2 x 16 72, 1 x 16 68 for 64.
  const double inner = std::max(issued, kReturnSlots * kVector * (rows + kept));
  const double scatter = groups * kept * (11.0 + 2.0 * rows);
  const double dy_elements = double(c.block_rows) * c.block_cols;
  const double value_elements = double(c.block_kept) * c.block_cols;
  return {chunks * (c.block_cols / kVector * inner + scatter) +
              StageSlots(p, c, p.y_layout, dy_elements) +
              StageSlots(p, c, Layout::kFeatureMajor, value_elements) +
              TableSlotsCost(c, c.groups_in_tile * double(c.block_kept)),
          (SectorFactor(p.y_layout, c) * dy_elements + value_elements) * ByteWidth(p.dtype)};
}

StepCost SddmmStep(const Problem& p, const Config& c) {
  constexpr double kVector = 4.0;
  const SharedLayout layout = MakeSharedLayout(p.op, c, p.m, ByteWidth(p.dtype));
  const double kept = c.thread_kept, cols = c.thread_cols;
  // 8 x 8: 286 for 256 multiplications. With columns of different groups each of them reads the
  // gathered rows again. The rows that slots pick from a window meet in the banks, gathered ones
  // lie at an odd stride: at 4096^3, 8:32, L = 32, where both stage the same number of rows, 1.51
  // and 1.21 ms on an H200 in float32.
  const double conflicts = c.staging == Staging::kWindow ? 1.15 : 1.0;
  const double inner =
      c.shared_group
          ? (kVector * kept * cols + ReadSlots(p, kVector * (kept + cols)) + 14.0) * conflicts
          : 2.0 *
                (kVector * kept * cols + ReadSlots(p, kVector * cols * (kept + 1.0)) + 6.0 * cols);
  const double x_elements = double(layout.first_count) * c.block_rows;
  const double dy_elements = double(layout.second_count) * c.block_rows;
  return {c.block_rows / kVector * inner + StageSlots(p, c, p.x_layout, x_elements) +
              StageSlots(p, c, p.y_layout, dy_elements),
          (SectorFactor(p.x_layout, c) * x_elements + SectorFactor(p.y_layout, c) * dy_elements) *
              ByteWidth(p.dtype)};
}

StepCost Step(const Problem& p, const Config& c) {
  switch (p.op) {
    case Op::kSpmm:
      return SpmmStep(p, c);
    case Op::kSpmmT:
      return SpmmTStep(p, c);
    case Op::kSddmm:
      return SddmmStep(p, c);
  }
  return {};
}

}  // namespace

double EstimateCycles(const Problem& p, const Device& device, const Config& c) {
  const TileCounts tiles = Tiles(p, c);
  const double owned = double(p.batch) * tiles.outer * tiles.inner;
  const double blocks = owned * c.split;
  const double steps = double(CeilDiv(Steps(p, c), c.split));

  // Blocks that run side by side on one SM: 1 KB of shared memory is reserved for each, and the
  // kernels are compiled for 512 threads in its registers, or 384 (8 x 8 in sddmm).
  const double threads = p.op == Op::kSddmm && c.thread_kept * c.thread_cols >= 64 ? 384.0 : 512.0;
  const double per_sm =
      std::max(1.0, double((int64_t(blocks) + device.num_sms - 1) / device.num_sms));
  const double fitting =
      std::min(double(device.sm_shared_bytes / (c.shared_bytes + 1024)), threads / c.threads);
  const double resident = std::max(1.0, std::min(fitting, per_sm));

  // Each of the SM's schedulers issues one instruction per cycle to 32 lanes.
  const double warps = c.threads / 32.0;
  const double schedulers = device.fp32_lanes / 32.0;
  const StepCost step = Step(p, c);
  const double issued =
      warps * (step.slots + kStepSlots) / schedulers / IssueShare(resident * warps);
  const double busy = std::max(issued, step.bytes / kLoadBytesPerCycle);
  const double per_step = busy + (c.stages == 1 ? kLatency : 0.0) / resident;

  // Stores of the owned tile, and the fill of the pipeline.
  const double owned_elements = p.op == Op::kSpmm    ? double(c.block_rows) * c.block_cols
                                : p.op == Op::kSpmmT ? double(c.block_windows) * p.m * c.block_rows
                                                     : double(c.block_kept) * c.block_cols;
  const double once = 2.0 * kLatency / resident + owned_elements * 4.0 / 16.0;

  double cycles = kLaunch + per_sm * (steps * per_step + once);
  if (c.thread_rows == 4 && c.thread_cols == 4 && per_sm <= fitting) cycles *= kSmallTilesAtOnce;
  if (c.split > 1) {
    cycles += kLaunch + owned * owned_elements * 4.0 * (c.split + 1) / (16.0 * device.num_sms);
  }
  return cycles;
}

namespace {

// A dense product of a library, without its launch: of its tiles those that take the least time, in
// whole waves or, by sharing the reduction, a tenth longer than their sum.
double ProductCycles(double batch, double height, double width, double reduction,
                     double flops_per_cycle, int32_t num_sms) {
  struct Tile {
    double rows, cols, share;
  };
  constexpr Tile kTiles[] = {{128, 256, 1.0}, {128, 128, 0.97}, {64, 128, 0.85}, {64, 64, 0.7}};
  double best = 0.0;
  for (const Tile& tile : kTiles) {
    const double tiles = batch * std::ceil(height / tile.rows) * std::ceil(width / tile.cols);
    const double waves = std::min(std::ceil(tiles / num_sms), 1.1 * tiles / num_sms);
    const double cycles =
        waves * 2.0 * tile.rows * tile.cols * reduction / (tile.share * flops_per_cycle);
    if (best == 0.0 || cycles < best) best = cycles;
  }
  return best;
}

}  // namespace

// Chosen to follow XLA's dense products on an H200, taking 1.755 GHz for its clock: 0.92 to 1.07 of
// 18 measured times at 16 to 8192 rows, 0.55 to 0.85 of three with few or ragged tiles. The weight
// is expanded by the kernel: a build without it has no kernels to compare with either.
double DenseCycles(const Problem& p, const Device& device) {
  constexpr double kKernel = 5300.0;  // of each launch: first loads, last stores
  // In favour of the kernels, which take no memory: where launches are all that counts, estimates
  // tell nothing.
  constexpr double kDoubt = 6400.0;
  // Of the peaks, at the clocks that power allows: 700 to 820 TFLOP/s in bfloat16, 51 on CUDA
  // cores.
  constexpr double kHalfShare = 0.86, kTf32Share = 0.93, kLanesShare = 0.89;
  constexpr double kCopyShare = 0.82;  // of the bandwidth: 4.2 TB/s
  // With TF32, tensor cores of Hopper want the reduction contiguous, which a row-major W has not:
  // 1024, 4096, 4096 takes 127 us, 4096^3 342, which a pass that transposes W explains. Few rows
  // are not worth that pass.
  constexpr double kTransposeShare = 0.69, kStridedShare = 0.6;
  constexpr double kExpandShare = 0.70;  // 0.85 of a copy: what the kernel is designed for
  constexpr double kGatherShare = 0.5;   // where XLA gathers what is kept of a gradient
  // A product at 4096^3 in float32 that is rounded to bfloat16 afterwards takes 3 % longer: most of
  // the sums are still in L2.
  constexpr double kRoundShare = 3.5;
  const double bandwidth = device.bytes_per_cycle;
  const double bytes = ByteWidth(p.dtype);
  const double batch = p.batch, rows = p.rows, depth = p.depth, cols = p.cols;
  const double weight = batch * depth * cols;
  const bool tf32 = bytes == 4 && p.allow_tf32;
  const double flops = bytes == 2 ? kHalfShare * device.tensor_flops
                       : tf32     ? kTf32Share * device.tensor_flops / 2.0
                                  : kLanesShare * device.fp32_lanes * 2.0;
  const bool gradient = p.op == Op::kSddmm;
  const double height = gradient ? depth : rows;
  const double width = p.op == Op::kSpmmT ? depth : cols;
  const double reduction = gradient ? rows : p.op == Op::kSpmmT ? cols : depth;
  // The dense weight in the operands' dtype, or its gradient in float32.
  const double weight_bytes = weight * (gradient ? 4.0 : bytes);
  const double moved = batch * rows * (depth + cols) * bytes + weight_bytes;
  const double product = ProductCycles(batch, height, width, reduction, flops, device.num_sms);
  const double copy = moved / (kCopyShare * bandwidth);
  double cycles = std::max(product, copy);
  if (tf32 && p.op == Op::kSpmm && device.arch == 90) {
    cycles = std::min(cycles + 2.0 * weight_bytes / (kTransposeShare * bandwidth),
                      std::max(product / kStridedShare, copy));
  }
  const double kept_bytes = batch * p.kept * cols * bytes;
  const double pass_share = gradient ? kGatherShare : kExpandShare;
  cycles += 2.0 * kKernel + kDoubt + (weight_bytes + kept_bytes) / (pass_share * bandwidth);
  if (!gradient && ByteWidth(p.result_dtype) == 2) {
    cycles += kKernel + 6.0 * batch * rows * width / (kRoundShare * bandwidth);
  }
  return cycles;
}

// On an H200 in bfloat16, with the results of the product transposed too, 2.7 to 3.8 us for 16 to
// 64 rows and a depth of 8192, and 6.1 for 64 rows and 28672.
double TransposeMicroseconds(const Problem& p) {
  constexpr double kLaunch = 2.5, kBytesPerMicrosecond = 2.5e6;
  return kLaunch + 2.0 * ByteWidth(p.dtype) * p.batch * p.rows * p.depth / kBytesPerMicrosecond;
}

double TransposeValuesMicroseconds(const Problem& p) {
  constexpr double kLaunch = 3.0, kBytesPerMicrosecond = 2.9e6;
  return kLaunch + 2.0 * ByteWidth(p.dtype) * p.batch * p.kept * p.cols / kBytesPerMicrosecond;
}

double Microseconds(const Device& device, double cycles) {
  // The clocks of the cards of DeviceOf under load: of an H200 the one that the costs are chosen
  // for, elsewhere the boost clock of the data sheet.
  struct Clock {
    int32_t arch;
    double mhz;
  };
  constexpr Clock kClocks[] = {{120, 2617}, {100, 1965}, {90, 1755},
                               {89, 2520},  {86, 1695},  {80, 1410}};
  for (const Clock& clock : kClocks) {
    if (device.arch >= clock.arch) return cycles / clock.mhz;
  }
  return 0.0;
}

}  // namespace jax_nm
