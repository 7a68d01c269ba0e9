// Launches of the Hopper kernels.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "config.h"
#include "dispatch.h"
#include "problem.h"

namespace jax_nm {

// Finds the driver's encoder of tensor maps, which a launch needs.
cudaError_t PrepareHopper();

// Describes values, of which the padding slots are not visible, as boxes of 128 bytes of columns by
// block_kept slots. `data` and a row of values are multiples of 16 bytes.
cudaError_t MakeValuesMap(const Problem& p, const Config& config, const void* data,
                          CUtensorMap* map);

// Computes spmm, with its epilogue, spmm_t or sddmm by `function`, the kernel of that
// configuration. The tensor maps are encoded on the host and travel as parameters of the kernel, so
// a launch may be captured into a CUDA graph.
cudaError_t LaunchHopper(const Problem& p, const Config& config, const void* function,
                         const Buffers& buffers, cudaStream_t stream);

// The same for spmm of float32 in TF32.
cudaError_t LaunchTf32(const Problem& p, const Config& config, const void* function,
                       const Buffers& buffers, cudaStream_t stream);

// The same for spmm by the kernel for short vectors, and for spmm and sddmm by those that split
// float32.
cudaError_t LaunchShort(const Problem& p, const Config& config, const void* function,
                        const Buffers& buffers, cudaStream_t stream);

}  // namespace jax_nm
