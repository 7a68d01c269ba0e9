#include "kernel_tables.cuh"

namespace jax_nm {

KernelTable SpmmTFloat32() { return SpmmTTable<float>(); }

}  // namespace jax_nm
