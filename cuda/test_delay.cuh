// Test builds that make races show.
#pragma once

#include <cstdint>

namespace jax_nm {

// Builds with JAX_NM_TEST_DELAYS hold warps up at random wherever they hand something over, so that
// a missing wait shows as a wrong result. Level 2 breaks one on purpose: consumers free a stage
// before they have read it, and the tests have to fail.
#ifndef JAX_NM_TEST_DELAYS
#define JAX_NM_TEST_DELAYS 0
#endif
constexpr bool kFreesEarly = JAX_NM_TEST_DELAYS == 2;

__device__ __forceinline__ void TestDelay() {
  if constexpr (JAX_NM_TEST_DELAYS > 0) {
    const uint32_t now = static_cast<uint32_t>(clock64());
    const uint32_t hash = (now ^ threadIdx.x / 32 * 0x9e3779b9u ^ blockIdx.x) * 2654435761u;
    if (hash >> 29 == 0) {
      while (static_cast<uint32_t>(clock64()) - now < hash % 8192) {
      }
    }
    __syncwarp();
  }
}

}  // namespace jax_nm
