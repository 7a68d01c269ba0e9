// Whether a Hopper kernel computes a problem, and how: pure functions in plain C++.
#pragma once

#include <cstdint>
#include <string>

#include "config.h"
#include "problem.h"
#include "tuning.h"

namespace jax_nm {

bool IsHopper(KernelId kernel);

// What the kernel needs and the problem does not have; empty if it computes it. Shapes only:
// operands must also be aligned to 16 bytes, as XLA's buffers are.
std::string HopperReason(const Problem& p, KernelId kernel);

// The fastest way to launch a kernel for a problem that it computes, and the estimated cycles of a
// launch, to be compared with those of the other kernels.
Config HopperConfig(const Problem& p, KernelId kernel, const Device& device);
double HopperCycles(const Problem& p, const Device& device, const Config& config);

}  // namespace jax_nm
