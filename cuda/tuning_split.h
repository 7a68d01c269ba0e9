// Whether the kernel for float32 by products in bfloat16 computes a problem, and how: pure
// functions in plain C++.
#pragma once

#include <string>
#include <vector>

#include "tuning.h"

namespace jax_nm {

constexpr bool IsSplit(KernelId kernel) { return kernel == KernelId::kSpmmSplit64x256; }

// What the kernel needs and the problem does not have; empty if it computes it. Shapes only:
// operands must also be aligned to 16 bytes, as XLA's buffers are.
std::string SplitReason(const Problem& p);

// The ways to launch it for a problem that it computes, the fastest one, and the estimated cycles.
std::vector<Config> SplitConfigs(const Problem& p, const Device& device);
Config SplitConfig(const Problem& p, const Device& device);
double SplitCycles(const Problem& p, const Device& device, const Config& config);

}  // namespace jax_nm
