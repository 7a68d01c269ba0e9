// From float32 to TF32, as the tensor cores will read it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jax_nm {

// The tensor cores cut a float32 operand to the 10 bits of TF32. With a quarter to a half of the
// last bit added before, what they keep is wrong by less than one unit of it and nearly without
// bias, for one multiplication; numbers of 10 bits stay themselves, Inf and NaN too, and what is
// larger than 2^128 (1 - 2^-12) becomes Inf. (cvt.rna, which rounds to nearest, takes a comparison
// and an addition, and those are more than the products leave time for.)
__device__ __forceinline__ uint32_t RoundToTf32(uint32_t bits) {
  return __float_as_uint(__uint_as_float(bits) * (1.0f + 1.0f / 4096.0f));
}

}  // namespace jax_nm
