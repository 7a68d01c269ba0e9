#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SddmmFloat32() { return SddmmTable<float>(); }

}  // namespace jax_nm
