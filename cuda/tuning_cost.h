// The cost model of tuning.
#pragma once

#include "config.h"
#include "problem.h"
#include "tuning.h"

namespace jax_nm {

// Estimated cycles of one launch, the reduction of split results included: to rank configurations
// of one problem, and to be compared with DenseCycles.
double EstimateCycles(const Problem& p, const Device& device, const Config& c);

// The same of a product by way of a dense matrix: a pass over memory that expands the weight or
// picks its kept slots, the dense product, and the rounding of its sums.
double DenseCycles(const Problem& p, const Device& device);

// The time in which XLA transposes x.
double TransposeMicroseconds(const Problem& p);

// The time in which XLA pads and transposes values.
double TransposeValuesMicroseconds(const Problem& p);

// Cycles as time at a clock that is typical of the device.
double Microseconds(const Device& device, double cycles);

}  // namespace jax_nm
