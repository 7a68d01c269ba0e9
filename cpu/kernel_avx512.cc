// Kernels for AVX-512. 32 registers: 24 sums, 4 vectors of rows, 1 broadcast.
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__) || !defined(__FMA__) || !defined(__F16C__)
#error "compile this file with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c"
#endif
#define JAX_NM_VECTOR_BYTES 64
#define JAX_NM_PANEL_VECTORS 4
#include "kernel_body.h"

namespace jax_nm {

const KernelTable kAvx512Kernels = MakeKernelTable();

}  // namespace jax_nm
