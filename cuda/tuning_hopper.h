// Whether a Hopper kernel computes a problem, and how: pure functions in plain C++.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config.h"
#include "problem.h"
#include "tuning.h"

namespace jax_nm {

// What tensor maps and 32-bit numbers hold.
constexpr int64_t kHopperMaxDimension = int64_t{1} << 29;  // its bytes fit in 31 bits
constexpr int64_t kHopperMaxStride = int64_t{1} << 40;     // of a tensor map, in bytes
constexpr int64_t kHopperMaxTiles = int64_t{1} << 30;

bool IsHopper(KernelId kernel);

// Those of them that multiply float32 in TF32.
bool IsTf32(KernelId kernel);

// The tiles in flight walk over the reduction in step, so what L2 takes from memory is one panel of
// x per row of tiles and one of the other operand per column of them. At 8192^3, 4:32, bands of 8
// columns of 256 x 128 tiles read 71 MB of x in each wave of 17 us, the chosen bands of 32 read 21
// MB: 0.273 and 0.261 ms on an H200. The bytes are those of a panel of a row and of a column.
int32_t RasterCols(const TileCounts& tiles, double outer_bytes, double inner_bytes,
                   int32_t num_sms);

// How many blocks are in flight in clusters of a size. The multiprocessors of a cluster belong to
// one of the GPU's processing clusters, of which some have fewer than others: of its 132 an H200
// fills all with clusters of 2, 117 with clusters of 3 and 120 with clusters of 4. What does not
// fit runs in a second wave, which takes twice the time.
int32_t BlocksInClusters(int32_t num_sms, int32_t cluster);

// Adds to `configs`, for clusters of every size, the launches like `c` in which the blocks of a
// cluster share the tiles of an incomplete last round.
void AddSharedLaunches(const Problem& p, Config c, int64_t tiles, int32_t num_sms,
                       std::vector<Config>& configs);

// What the tiles of a launch take, whole ones in rounds and then those that clusters share: the
// steps of a whole one `walk` cycles and of a shared one `shared_walk`, a tile beside its steps
// `tile`; and what it costs the blocks of a cluster to wait for each other and to read each other's
// sums, which takes a cycle for every 14 bytes.
double WalkCycles(const Config& c, int64_t tiles, double walk, double shared_walk, double tile,
                  double sums_bytes);

// The larger of two times counts, and the other one a little.
double Both(double a, double b);

// What the kernel needs and the problem does not have; empty if it computes it. Shapes only:
// operands must also be aligned to 16 bytes, as XLA's buffers are.
std::string HopperReason(const Problem& p, KernelId kernel);

// The fastest way to launch a kernel for a problem that it computes, and the estimated cycles of a
// launch, to be compared with those of the other kernels.
Config HopperConfig(const Problem& p, KernelId kernel, const Device& device);
double HopperCycles(const Problem& p, const Device& device, const Config& config);

}  // namespace jax_nm
