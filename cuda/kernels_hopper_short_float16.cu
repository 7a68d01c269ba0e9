#include "short_tables.cuh"

namespace jax_nm {

KernelTable HopperShortFloat16(bool float_result) {
  return float_result ? ShortTable<__half, float>() : ShortTable<__half, __half>();
}

}  // namespace jax_nm
