// Kernels for NEON. 32 registers: 24 sums, 4 vectors of rows, 1 broadcast.
#if !defined(__aarch64__)
#error "compile this file for aarch64"
#endif
#define JAX_NM_VECTOR_BYTES 16
#define JAX_NM_PANEL_VECTORS 4
#include "kernel_body.h"

namespace jax_nm {

const KernelTable kNeonKernels = MakeKernelTable();

}  // namespace jax_nm
