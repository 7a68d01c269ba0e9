// Where everything of the kernels for short vectors lies in shared memory, and their ring of
// stages.
#pragma once

#include <cstdint>

#include "ptx_hopper.cuh"
#include "short_config.h"
#include "test_delay.cuh"

namespace jax_nm {

struct ShortShared {
  uint32_t base;
  const ShortArgs& args;

  __device__ __forceinline__ ShortShared(const void* dynamic, const ShortArgs& a)
      : base((ptx::SharedAddress(dynamic) + 1023) & ~1023u), args(a) {}

  __device__ __forceinline__ uint32_t X(int32_t stage) const {
    return base + stage * args.layout.stage_bytes;
  }
  __device__ __forceinline__ uint32_t Values(int32_t stage) const {
    return X(stage) + args.layout.values_offset;
  }
  __device__ __forceinline__ uint32_t Table(int32_t stage) const {
    return base + args.layout.table_offset + stage * args.layout.table_bytes;
  }
  // A stage's operands and its table have arrived.
  __device__ __forceinline__ uint32_t Full(int32_t stage) const {
    return base + args.layout.barrier_offset + stage * 16;
  }
  // A stage may be filled again.
  __device__ __forceinline__ uint32_t Empty(int32_t stage) const { return Full(stage) + 8; }
};

// A place in the ring; `parity` is that of the phase of `full` that will be waited for there.
struct ShortTurn {
  int32_t stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void Advance(int32_t stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace jax_nm
