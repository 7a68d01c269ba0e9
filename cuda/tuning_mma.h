// The part of the choice that concerns spmm on the tensor cores of a warp: which problems its
// kernels compute, their tiles, and what they cost.
#pragma once

#include <string>

#include "tuning.h"

namespace jax_nm {

bool IsMma(KernelId kernel);

// What the kernel needs of the problem and does not find, as a sentence; empty if nothing.
std::string MmaReason(const Problem& p, KernelId kernel);

// What the tile fixes, and the variant that the vector length allows.
Config MmaConfig(const Problem& p, const KernelInfo& kernel);

// The estimated cycles of a whole launch.
double MmaCycles(const Problem& p, const Device& device, const Config& c);

// Of a launch whose blocks have warps that copy beside those that multiply, here and on CUDA cores.
struct CopierBlocks {
  double owned;     // tiles of the result
  double steps;     // of a block
  double per_sm;    // blocks
  double resident;  // of these at a time, `most` at most
};
CopierBlocks CopierBlocksOf(const Problem& p, const Device& device, const Config& c, double most);

// The cycles of the launch, if a step keeps a multiprocessor busy for `busy` cycles, costs a block
// `step` beside that, and a launch costs `launch`.
double CopierCycles(const Device& device, const Config& c, const CopierBlocks& blocks, double busy,
                    double step, double launch);

}  // namespace jax_nm
