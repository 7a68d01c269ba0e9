// Kernels for AVX2. 16 registers: 12 sums, 2 vectors of rows, 1 broadcast.
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "compile this file with -mavx2 -mfma -mf16c"
#endif
#define JAX_NM_VECTOR_BYTES 32
#define JAX_NM_PANEL_VECTORS 2
#include "kernel_body.h"

namespace jax_nm {

const KernelTable kAvx2Kernels = MakeKernelTable();

}  // namespace jax_nm
