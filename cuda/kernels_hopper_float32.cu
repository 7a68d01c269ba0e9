#include "hopper_tables.cuh"

namespace jax_nm {

KernelTable HopperFloat32() { return HopperTf32Table(); }

}  // namespace jax_nm
