// The skinny kernels whose values come in bulk: their configurations and what these cost.
#pragma once

#include <vector>

#include "tuning.h"

namespace jax_nm {

// Everything about the configurations of a kernel except stages and shares; the last ones, of 16
// slots a step, are for windows so wide that nothing else fits.
std::vector<Config> SkinnyBulkShapes(const Problem& p, KernelId kernel);

// The estimated cycles of a whole launch.
double SkinnyBulkCycles(const Problem& p, const Device& device, const Config& c);

}  // namespace jax_nm
