#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SddmmBFloat16() { return SddmmTable<__nv_bfloat16>(); }

}  // namespace jax_nm
