#include "tuning_skinny_bulk.h"

#include <algorithm>
#include <cmath>

#include "kernel_args.h"
#include "skinny_bulk_config.h"
#include "tuning_skinny.h"

namespace jax_nm {
namespace {

// 8 warps that multiply, or 4, side by side or in groups.
struct Shape {
  int32_t block_cols;
  int32_t kept_warps;
};
constexpr Shape kShapes[] = {{64, 4}, {128, 2}, {256, 1}, {64, 2}, {128, 1}};

constexpr int32_t kRegisters = 96;  // of a thread, with 64 rows

}  // namespace

std::vector<Config> SkinnyBulkShapes(const Problem& p, KernelId kernel) {
  const int32_t length = EffectiveVectorLength(p);
  std::vector<Config> shapes;
  for (int32_t slots : {128, 64, 32, 16}) {
    for (const Shape& shape : kShapes) {
      if (slots % (kSkinnySlots * shape.kept_warps) != 0) continue;
      for (int32_t x_warps : {4, 8}) {
        Config c{};
        c.kernel = kernel;
        c.staging = Staging::kWindow;
        c.block_rows = SkinnyRows(kernel);
        c.block_cols = shape.block_cols;
        c.block_kept = slots;
        c.block_windows = UnitsTouched(slots, p.n);
        c.kept_warps = shape.kept_warps;
        c.x_warps = x_warps;
        c.threads = 32 * (SkinnyMultiplyWarps(c) + x_warps + 1);
        c.split = 1;
        c.cluster = 1;
        c.groups_in_tile = UnitsTouched(c.block_cols, length);
        c.shared_group = length % SkinnyGroupCols(true, 2) == 0;
        shapes.push_back(c);
      }
    }
  }
  return shapes;
}

// Chosen to follow an H200, taking 1.755 GHz for its clock: of 180 problems in bfloat16 (1 to 64
// rows, x in either layout, 16:32 to 4:32, L = 32 and 128) the fastest launch by estimate takes
// 0.86 to 1.31 of it, 1.05 in the mean.
double SkinnyBulkCycles(const Problem& p, const Device& device, const Config& c) {
  // What is left of a launch when its bytes are taken off: 21.7 for 68 MB of weights.
  constexpr double kLaunch = 7500.0;
  constexpr double kMemoryShare = 0.85;  // of the bandwidth on paper; a stream gets 4.2 TB/s
  // What a block gets of values, and what its warps stage of x, which adds to it: half as much
  // where they transpose it too. 32 rows of 28672 x 8192, 16:32, take 66 us feature-major and 92
  // row-major.
  constexpr double kValueBytesPerCycle = 36.0;
  const bool transposes = p.x_layout == Layout::kRowMajor && p.rows > 1;
  const double x_bytes_per_cycle = transposes ? 7.5 : 14.0;
  const double x_bytes_per_cycle_and_warp = 0.17 * x_bytes_per_cycle;
  // Values that the warps for x copy too arrive later: 72 instead of 60, one row of 28672 x 8192.
  constexpr double kNotInBulk = 0.75;
  // Copies of single elements, and the issue slots that a warp fills, as of the other skinny
  // kernels.
  constexpr double kElementSlots = 35.0, kIssueShare = 0.026;
  // Of tiles that read the same values: 64 rows of 8192 x 8192, 4:32, took 28 as two and 26 as one.
  constexpr double kMoreTiles = 1.15;
  constexpr double kStepLatency = 1700.0;                                  // of a team of warps
  constexpr double kStep = 250.0, kSixteenSlots = 130.0, kRowTile = 18.0;  // of a multiplying warp
  constexpr double kSecondLaunch = 6000.0;
  constexpr double kShare = 1500.0, kPeerBytesPerCycle = 14.0;  // as of the Hopper kernels
  const SkinnyBulkLayout layout = MakeSkinnyBulkLayout(c, p.m);
  const TileCounts tiles = Tiles(p, c);
  const double owned = double(p.batch) * tiles.outer * tiles.inner;
  const int32_t shares = c.split * c.cluster;
  const double per_sm = std::ceil(owned * shares / SkinnySms(device, c.cluster));
  const double resident = std::min<double>(per_sm, SkinnyResident(device, c, kRegisters));
  const double steps = per_sm * double(CeilDiv64(Steps(p, c), shares));

  const double weight = double(p.batch) * p.kept * (double(p.cols) * 2.0 + p.groups);
  const double memory =
      weight * (1.0 + 0.3 * (tiles.outer - 1)) / (kMemoryShare * device.bytes_per_cycle);
  const bool bulk = p.values_cols % 8 == 0;
  const double value_bytes = double(c.block_kept) * c.block_cols * 2.0;
  // The warps for x have the same work for any number of rows, but L1 less.
  const double rows = std::max<double>(std::min<int64_t>(p.rows, c.block_rows), 4.0);
  const double x_bytes = layout.features * rows * 2.0;
  const double loaded =
      steps *
      (value_bytes / (kValueBytesPerCycle * (bulk ? 1.0 : kNotInBulk)) +
       x_bytes / std::min(x_bytes_per_cycle, x_bytes_per_cycle_and_warp * c.x_warps * resident));
  const int64_t x_line = p.x_layout == Layout::kRowMajor || p.rows == 1 ? p.depth : p.rows;
  const double elements =
      (bulk ? 0.0 : value_bytes / 2.0) + (x_line % 8 == 0 ? 0.0 : x_bytes / 2.0);
  const double schedulers = device.fp32_lanes / 32.0;
  const double copied =
      steps * elements / 32.0 * kElementSlots / (schedulers * kIssueShare * c.x_warps * resident);
  const double waited = steps * kStepLatency / (SkinnyTeams(c) * resident);
  const double slots = CeilDiv(c.block_kept / kSkinnySlots, c.kept_warps);
  const double multiplied =
      steps * (kStep + slots * (kSixteenSlots + kRowTile * c.block_rows / 8.0)) / resident;
  // What takes part of the time of something else delays it a little.
  double sum = 0.0;
  for (const double part : {memory, loaded, copied, waited, multiplied}) sum += std::pow(part, 4.0);
  const double stream = std::sqrt(std::sqrt(sum)) * (tiles.outer > 1 ? kMoreTiles : 1.0);

  const double tile_bytes = 4.0 * std::min<double>(p.rows, c.block_rows) * c.block_cols;
  // Nothing is multiplied before the first stage is there.
  double cycles = kLaunch + layout.stage_bytes / kValueBytesPerCycle + stream +
                  2.0 * per_sm * tile_bytes * c.kept_warps / 128.0;
  if (c.cluster > 1) {
    cycles += kShare + tile_bytes * (c.cluster - 1) / c.cluster / kPeerBytesPerCycle;
  }
  if (c.split > 1) {
    cycles += kSecondLaunch + owned * tile_bytes * (c.split + 1) / (16.0 * device.num_sms);
  }
  return cycles;
}

}  // namespace jax_nm
