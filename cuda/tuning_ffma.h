// The part of the choice that concerns spmm in float32 on CUDA cores by warps that copy and warps
// that multiply: which problems its kernels compute, their tiles, and what they cost.
#pragma once

#include <string>

#include "tuning.h"

namespace jax_nm {

// What the kernel needs of the problem and does not find, as a sentence; empty if nothing.
std::string FfmaReason(const Problem& p);

// The estimated cycles of a whole launch.
double FfmaCycles(const Problem& p, const Device& device, const Config& c);

}  // namespace jax_nm
