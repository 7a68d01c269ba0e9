#include "hopper_tables.cuh"

namespace jax_nm {

KernelTable HopperSpmmBFloat16(bool float_result) {
  return float_result ? HopperSpmmTable<__nv_bfloat16, float>()
                      : HopperSpmmTable<__nv_bfloat16, __nv_bfloat16>();
}

}  // namespace jax_nm
