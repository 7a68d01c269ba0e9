// Whether the kernels for float32 by products in bfloat16 compute a problem, and how: pure
// functions in plain C++.
#pragma once

#include <string>
#include <vector>

#include "tuning.h"
#include "tuning_split_sddmm.h"

namespace jax_nm {

constexpr bool IsSplit(KernelId kernel) {
  return kernel == KernelId::kSpmmSplit64x256 || IsSplitSddmm(kernel);
}

// What all of them need of the operands and the problem does not have; empty if nothing.
std::string SplitOperandsReason(const Problem& p);

// What the kernel needs and the problem does not have; empty if it computes it. Shapes only:
// operands must also be aligned to 16 bytes, as XLA's buffers are.
std::string SplitReason(const Problem& p, KernelId kernel);

// The ways to launch it for a problem that it computes, the fastest one, and the estimated cycles.
std::vector<Config> SplitConfigs(const Problem& p, KernelId kernel, const Device& device);
Config SplitConfig(const Problem& p, KernelId kernel, const Device& device);
double SplitCycles(const Problem& p, const Device& device, const Config& config);

}  // namespace jax_nm
