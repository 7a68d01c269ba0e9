// Where everything lies in shared memory, and the ring of stages through which the producer feeds
// the consumers.
#pragma once

#include <cstdint>

#include "hopper_config.h"
#include "ptx_hopper.cuh"
#include "test_delay.cuh"

namespace jax_nm {

constexpr int32_t kWarpgroupWarps = 4;
constexpr int32_t kWarpgroupThreads = 128;

template <class Tile>
struct HopperShared {
  uint32_t base;

  __device__ __forceinline__ explicit HopperShared(const void* dynamic)
      : base((ptx::SharedAddress(dynamic) + 1023) & ~1023u) {}

  __device__ __forceinline__ uint32_t X(int32_t stage) const {
    return base + Tile::kRingOffset + stage * Tile::kStageBytes;
  }
  // The values of spmm and spmm_t, dy of sddmm.
  __device__ __forceinline__ uint32_t Second(int32_t stage) const {
    return X(stage) + Tile::kXBytes;
  }
  // Where a consumer's sums lie once the ring has run empty.
  __device__ __forceinline__ uint32_t Sums(int32_t consumer) const {
    return base + Tile::kRingOffset + consumer * (Tile::kSumsBytes / kHopperConsumers);
  }
  __device__ __forceinline__ uint32_t Staging(int32_t consumer, int32_t buffer) const {
    return base + (consumer * 2 + buffer) * kHopperStagingBytes;
  }

  __device__ __forceinline__ uint32_t OneHot(int32_t buffer) const {
    return base + Tile::kOneHotOffset + buffer * Tile::kOneHotBytes;
  }

  // A stage's operands have arrived.
  __device__ __forceinline__ uint32_t Full(int32_t stage) const {
    return base + Tile::kBarrierOffset + stage * 8;
  }
  // A stage may be filled again.
  __device__ __forceinline__ uint32_t Empty(int32_t stage) const {
    return Full(stage) + kHopperMaxStages * 8;
  }
  // The same of the one-hot matrices.
  __device__ __forceinline__ uint32_t OneHotFull(int32_t buffer) const {
    return Full(2 * kHopperMaxStages + buffer);
  }
  __device__ __forceinline__ uint32_t OneHotEmpty(int32_t buffer) const {
    return Full(2 * kHopperMaxStages + Tile::kOneHots + buffer);
  }
};

// A place in the ring; `parity` is that of the phase of `full` that will be waited for there.
template <int32_t kStages>
struct RingPosition {
  int32_t stage = 0;
  uint32_t parity = 0;

  // By at most kStages steps.
  __device__ __forceinline__ void Advance(int32_t steps = 1) {
    stage += steps;
    if (stage >= kStages) {
      stage -= kStages;
      parity ^= 1;
    }
  }
  // The stage `distance` (at most kStages) steps ago.
  __device__ __forceinline__ int32_t Before(int32_t distance) const {
    const int32_t before = stage - distance;
    return before < 0 ? before + kStages : before;
  }
};

}  // namespace jax_nm
