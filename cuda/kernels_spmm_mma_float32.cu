#include "kernel_tables_mma.cuh"

namespace jax_nm {

KernelTable SpmmMmaFloat32() { return SpmmMmaTable<float>(); }

}  // namespace jax_nm
