#include "hopper_tables.cuh"

namespace jax_nm {

KernelTable HopperBFloat16(bool float_result) {
  return float_result ? HopperTable<__nv_bfloat16, float>()
                      : HopperTable<__nv_bfloat16, __nv_bfloat16>();
}

}  // namespace jax_nm
