#include "hopper_tables.cuh"

namespace jax_nm {

KernelTable HopperFloat16(bool float_result) {
  return float_result ? HopperTable<__half, float>() : HopperTable<__half, __half>();
}

}  // namespace jax_nm
