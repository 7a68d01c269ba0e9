#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SddmmFloat16() { return SddmmTable<__half>(); }

}  // namespace jax_nm
