// The same as tuning_split.h for the kernels that compute sddmm.
#pragma once

#include <string>
#include <vector>

#include "tuning.h"

namespace jax_nm {

constexpr bool IsSplitSddmm(KernelId kernel) {
  return kernel == KernelId::kSddmmSplit64x256 || kernel == KernelId::kSddmmSplit32x256;
}

std::string SplitSddmmReason(const Problem& p, KernelId kernel);
std::vector<Config> SplitSddmmConfigs(const Problem& p, KernelId kernel, const Device& device);
double SplitSddmmCycles(const Problem& p, const Config& config);

}  // namespace jax_nm
