#include "short_tables.cuh"

namespace jax_nm {

KernelTable HopperShortBFloat16(bool float_result) {
  return float_result ? ShortTable<__nv_bfloat16, float>()
                      : ShortTable<__nv_bfloat16, __nv_bfloat16>();
}

}  // namespace jax_nm
