#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SpmmTBFloat16() { return SpmmTTable<__nv_bfloat16>(); }

}  // namespace jax_nm
