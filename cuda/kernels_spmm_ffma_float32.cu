#include "kernel_tables_ffma.cuh"

namespace jax_nm {

KernelTable SpmmFfmaFloat32() { return SpmmFfmaTable(); }

}  // namespace jax_nm
