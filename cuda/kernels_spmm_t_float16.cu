#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SpmmTFloat16() { return SpmmTTable<__half>(); }

}  // namespace jax_nm
