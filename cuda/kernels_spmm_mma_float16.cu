#include "kernel_tables_mma.cuh"

namespace jax_nm {

KernelTable SpmmMmaFloat16() { return SpmmMmaTable<__half>(); }

}  // namespace jax_nm
