#include "hopper_tables.cuh"

namespace jax_nm {

KernelTable HopperSpmmFloat16(bool float_result) {
  return float_result ? HopperSpmmTable<__half, float>() : HopperSpmmTable<__half, __half>();
}

}  // namespace jax_nm
