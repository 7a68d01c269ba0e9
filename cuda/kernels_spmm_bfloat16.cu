#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SpmmBFloat16() { return SpmmTable<__nv_bfloat16>(); }

}  // namespace jax_nm
