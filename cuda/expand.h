// The dense weight of a product that goes by way of it, as a launch on a stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "problem.h"

namespace jax_nm {

// Loads the kernels on the current device, `device`; cheap after the first time. A launch needs
// this to have been done.
cudaError_t PrepareExpand(int device);

// dense [batch, depth, cols]: values [batch, kept, cols] at the rows that their indices
// [batch, groups, kept] name, zeros elsewhere. Neither allocates nor waits.
cudaError_t LaunchExpand(const Expansion& e, const void* values, const uint8_t* indices,
                         void* dense, cudaStream_t stream);

}  // namespace jax_nm
