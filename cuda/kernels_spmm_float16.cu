#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SpmmFloat16() { return SpmmTable<__half>(); }

}  // namespace jax_nm
