#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SpmmFloat32() { return SpmmTable<float>(); }

}  // namespace jax_nm
