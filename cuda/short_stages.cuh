// The ring of stages of the kernel for short vectors.
#pragma once

#include "ptx_hopper.cuh"
#include "short_config.h"
#include "test_delay.cuh"

namespace jax_nm {

// A place in the ring; `parity` is that of the phase of `Full` that will be waited for there.
struct ShortStages {
  uint32_t base;  // of the barriers, a multiple of kShortAlignment
  int32_t stage_bytes;
  int32_t count;
  int32_t stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ ShortStages(const void* dynamic, const ShortArgs& args)
      : base((ptx::SharedAddress(dynamic) + kShortAlignment - 1) & ~(kShortAlignment - 1u)),
        stage_bytes(args.layout.stage_bytes),
        count(args.stages) {}

  __device__ __forceinline__ uint32_t Base() const {
    return base + kShortAlignment + stage * stage_bytes;
  }
  __device__ __forceinline__ uint32_t Full(int32_t i) const { return base + i * 16; }
  __device__ __forceinline__ uint32_t Empty(int32_t i) const { return base + i * 16 + 8; }

  __device__ __forceinline__ void Advance() {
    if (++stage == count) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The line of the stage that a slot of a step picks.
__device__ __forceinline__ uint32_t ShortLine(const ShortArgs& args, const uint8_t* indices,
                                              int32_t step, int32_t slot) {
  const HopperArgs& a = args.hopper;
  const int32_t window = a.by_n.Quotient(slot);
  const int32_t last = a.m - 1;
  int32_t feature = window * a.m + last;
  if (slot < a.valid_kept) {
    const int32_t index = __ldg(indices + slot);
    feature = min(window * a.m + min(index, last), a.depth - 1);
  }
  return static_cast<uint32_t>(feature - step * args.features);
}

}  // namespace jax_nm
