// The choice of a CUDA kernel and its configuration: description -> candidates -> legality -> cost
// -> Config. Pure functions of their arguments in plain C++; no CUDA header, no device needed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config.h"
#include "problem.h"

namespace jax_nm {

constexpr int64_t CeilDiv64(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Device {
  int32_t arch;  // compute capability * 10; 0 if older than the kernels support
  int32_t num_sms;
  int32_t fp32_lanes;          // fused multiply-adds per cycle and SM
  int64_t block_shared_bytes;  // the most one block may ask for
  int64_t sm_shared_bytes;
  bool wgmma;               // runs machine code for sm_90a
  int32_t tensor_flops;     // dense, in half precision, per cycle and SM
  int32_t bytes_per_cycle;  // of memory
  bool clusters;            // launches blocks in clusters
};

// Limits of the newest known architecture that is not newer than `arch`. `num_sms` = 0: those of a
// typical card.
Device DeviceOf(int32_t arch, int32_t num_sms);

// Where nobody knows the device: the newest architecture that is tuned for.
constexpr int32_t kDefaultArch = 90;

struct KernelInfo {
  KernelId id;
  const char* name;
  Op op;
  Staging staging;
};

const std::vector<KernelInfo>& Kernels();
const KernelInfo* FindKernel(KernelId id);

enum class Verdict {
  kChosen,
  kSlower,         // legal, but another one is estimated to be faster
  kOtherOp,        // a forced kernel computes another operation
  kUnknownKernel,  // a forced kernel does not exist
  kNotForced,      // another kernel was asked for by name
  kArch,           // the device is too old
  kDtype,          // no CUDA kernel computes in float64
  kTransposed,     // values are transposed, or are not, and the kernel wants the other
  kTooLarge,       // a dimension exceeds the kernels' 32-bit numbers
  kMixedGroups,    // gathering per group needs one group per thread
  kSharedMemory,   // no configuration fits
  kWgmma,          // the device has no wgmma, or the build no code for it
  kHopper,         // what the Hopper kernels need of a problem, see HopperReason
  kShort,          // the same of the kernel for short vectors, see ShortReason
  kSplit,          // of those that split float32, see SplitReason
  kMma,            // the same of those for the tensor cores of a warp, see MmaReason
  kFfma,           // the same of those that copy and multiply in float32, see FfmaReason
  kSkinny,         // what the skinny kernels need of a problem, see SkinnyReason
};

struct Candidate {
  const KernelInfo* kernel;  // null for kUnknownKernel
  Verdict verdict;
  Config config;  // the fastest legal one, or the smallest one if none is legal
  double cycles;  // estimated, of the whole launch
};

struct Choice {
  Device device;
  Candidate chosen;  // verdict kChosen, or why there is none
  std::vector<Candidate> rejected;
};

// Honours `kernel` and `arch` of the problem; `arch` and `num_sms` describe the device that is
// there (`num_sms` = 0: a typical card). `wgmma` says whether code for sm_90a can run: the build
// may hold none, and `arch` of the problem may name another device than the one that is there.
// `workspace_bytes` bounds the split of the reduction.
Choice Choose(const Problem& p, int32_t arch, int32_t num_sms, bool wgmma, int64_t workspace_bytes);

// One sentence each.
std::string Reason(const Problem& p, const Choice& choice, const Candidate& candidate);

// Bytes of workspace that let a reduction be split when its result has few tiles: a function of
// shapes alone, because it is fixed when a program is lowered.
int64_t WorkspaceBytes(const Problem& p);

// Whether a kernel exists in machine code for sm_90a alone.
bool NeedsSm90a(KernelId kernel);

// The estimated time of the kernel that Choose chooses, of a product with few rows: for one that
// wants x feature-major with a transpose of x in front of it. Infinite if there is no kernel.
// `wgmma` as for Choose.
double FewRowsMicroseconds(const Problem& p, bool wgmma);

// The estimated time of the kernel that was chosen, with the transpose of values that it reads
// transposed.
double EstimateMicroseconds(const Problem& p, const Choice& choice);

// Whether values had better be transposed in front of the product, whatever they are in `p`: for a
// kernel that needs them so, if it is asked for by its id or faster with the transpose than those
// that need none. `wgmma` as for Choose.
bool TransposedValuesPay(const Problem& p, bool wgmma);

// Whether the product is faster by way of the dense weight or its dense gradient, with the dense
// product of a library, than by the kernel that Choose chooses. Never where a kernel is asked for
// by its id. `wgmma` as for Choose.
bool DensePays(const Problem& p, bool wgmma);

// Groups only need to be told apart within `cols`: a vector as long as that or longer acts like a
// multiple of every tile width.
int32_t EffectiveVectorLength(const Problem& p);

// Steps of the whole reduction under a configuration.
int32_t Steps(const Problem& p, const Config& c);

// Tiles of the two owned extents under a configuration.
struct TileCounts {
  int32_t outer;
  int32_t inner;
};
TileCounts Tiles(const Problem& p, const Config& c);

}  // namespace jax_nm
