// Whether a Hopper kernel computes a problem, and how: pure functions in plain C++.
#pragma once

#include <cstdint>
#include <string>

#include "config.h"
#include "problem.h"

namespace jax_nm {

bool IsHopper(KernelId kernel);

// What the kernel needs and the problem does not have; empty if it computes it. Shapes only:
// operands must also be aligned to 16 bytes, as XLA's buffers are.
std::string HopperReason(const Problem& p, KernelId kernel);

// The configuration of a kernel for a problem that it computes with that much workspace, and the
// estimated cycles of its launch, to be compared with those of the other kernels.
Config HopperConfig(const Problem& p, KernelId kernel, int32_t num_sms, int64_t workspace_bytes);
double HopperCycles(const Problem& p, const Config& config);

// Bytes of workspace that let all blocks share the tiles of a last, incomplete round.
int64_t HopperWorkspaceBytes(const Problem& p);

}  // namespace jax_nm
