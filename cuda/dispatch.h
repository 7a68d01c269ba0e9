// From a Problem, its Config and raw pointers to launches on a stream. Plain C++ apart from the
// CUDA runtime's own types.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "config.h"
#include "problem.h"

namespace jax_nm {

struct Buffers {
  const void* first;  // roles as in ffi_problem.h
  const void* second;
  const uint8_t* indices;
  void* result;
  void* workspace;
  const float* bias;  // [batch, cols], read if the problem has one
  void* sum;          // of the shape, dtype and layout of `result`, written if the problem emits it
};

// Loads the kernel of a configuration on the current device, `device`, raises its limit of shared
// memory and finds what else its launch calls. Cheap after the first time. A launch needs this to
// have been done.
cudaError_t Prepare(const Problem& p, const Config& config, int device);

// Computes the result; neither allocates nor waits. `workspace` holds `config.split` results in
// float32 if that is more than one. The kernels for tensor cores, and those in float32 whose
// warps have roles, return cudaErrorMisalignedAddress for buffers that are not aligned to 16 bytes.
cudaError_t Launch(const Problem& p, const Config& config, const Buffers& buffers,
                   cudaStream_t stream);

// Compute capabilities * 10 that this library holds machine code for.
std::vector<int> BuiltArchs();

// Whether this library holds machine code for sm_90a.
bool HasHopperKernels();

}  // namespace jax_nm
