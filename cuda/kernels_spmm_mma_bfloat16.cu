#include "kernel_tables_mma.cuh"

namespace jax_nm {

KernelTable SpmmMmaBFloat16() { return SpmmMmaTable<__nv_bfloat16>(); }

}  // namespace jax_nm
