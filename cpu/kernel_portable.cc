// Kernels for the base instruction set: 16-byte vectors, which every 64-bit CPU has.
#define JAX_NM_VECTOR_BYTES 16
#define JAX_NM_PANEL_VECTORS 2
#include "kernel_body.h"

namespace jax_nm {

const KernelTable kPortableKernels = MakeKernelTable();

}  // namespace jax_nm
