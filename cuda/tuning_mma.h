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

}  // namespace jax_nm
