// The warpgroup that feeds spmm_t: one warp fetches dy and the values by TMA, two build one-hot
// matrices in turns.
#pragma once

#include "hopper_maps.h"
#include "hopper_ring.cuh"
#include "hopper_walk.cuh"

namespace jax_nm {

// Where the element of a slot and a feature lies in a one-hot block: a line of features for each
// slot, with the swizzle of ptx::Descriptor, or of half lines.
template <class Tile>
__device__ __forceinline__ uint32_t OneHotOffset(int32_t slot, int32_t feature) {
  if constexpr (Tile::kFeatures == 32) {
    return (slot * 64 + feature * 2) ^ (slot / 2 % 4 * 16);
  } else {
    constexpr int32_t kSlabBytes = 16 * kHopperLineBytes;
    return feature / 64 * kSlabBytes +
           ((slot * kHopperLineBytes + feature % 64 * 2) ^ (slot % 8 * 16));
  }
}

constexpr uint16_t kOne = 0x3f80;  // of bfloat16

template <class Tile>
class HopperScatterProducer {
 public:
  __device__ __forceinline__ HopperScatterProducer(const HopperArgs& args, const HopperMaps& maps,
                                                   const HopperShared<Tile>& shared)
      : args_(args),
        maps_(maps),
        shared_(shared),
        walk_(args, blockIdx.x, gridDim.x),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Fetch() const {
    const int32_t count = walk_.Count();
    RingPosition<Tile::kStages> ring;
    for (int32_t i = 0; i < count; ++i) {
      const HopperCoordinates at = args_.raster.Locate(walk_.Work(i).tile);
      for (int32_t step = 0; step < args_.steps; ++step) {
        ptx::BarrierWait(shared_.Empty(ring.stage), ring.parity ^ 1);
        TestDelay();
        if (lane_ == 0) {
          const uint32_t full = shared_.Full(ring.stage);
          const int32_t col = step * Tile::kStepCols;
          ptx::BarrierArriveExpect(full, Tile::kStageBytes);
#pragma unroll
          for (int32_t slab = 0; slab < kHopperConsumers; ++slab) {
            ptx::LoadBox(shared_.X(ring.stage) + slab * Tile::kDySlabBytes, &maps_.first, full,
                         at.n_tile * Tile::kBlockRows + slab * 64, col, at.batch);
          }
          LoadValues(shared_.Second(ring.stage), full, col, at);
        }
        __syncwarp();
        ring.Advance();
      }
    }
  }

  // The matrices of every other group, those in `buffer`, by one warp.
  __device__ __forceinline__ void Mark(int32_t buffer) const {
    const uint32_t one_hot = shared_.OneHot(buffer);
    const int32_t count = walk_.Count();
    Marks marks;
    uint32_t parity = 1;
    int32_t group = buffer;
    for (int32_t i = 0; i < count; group -= args_.groups, ++i) {
      const HopperCoordinates at = args_.raster.Locate(walk_.Work(i).tile);
      const int32_t first_slot = FirstSlot(at) + lane_ - lane_ / 16 * (16 - BlockSlots());
      const uint8_t* indices = args_.indices + at.batch * args_.indices_batch + first_slot;
      for (; group < args_.groups; group += Tile::kOneHots) {
        const Index index = FetchIndex(indices + int64_t{group} * args_.kept, first_slot);
        ptx::BarrierWait(shared_.OneHotEmpty(buffer), parity);
        TestDelay();
        MarkGroup(marks, one_hot, index);
        ptx::FenceProxyAsync();
        __syncwarp();
        if (lane_ == 0) ptx::BarrierArrive(shared_.OneHotFull(buffer));
        parity ^= 1;
      }
    }
  }

 private:
  // Of a lane: slots `lane_`, `lane_` + 32, ... of the tile.
  static constexpr int32_t kOwned = (Tile::kSlots + 31) / 32;
  static constexpr uint32_t kNothing = UINT32_MAX;

  __device__ __forceinline__ int32_t BlockSlots() const {
    return Tile::kFullBlocks ? kHopperBlockSlots : args_.block_slots;
  }

  // Of the weight, that a tile holds.
  __device__ __forceinline__ int32_t FirstSlot(const HopperCoordinates& at) const {
    return at.col_tile * (Tile::kBlocks * BlockSlots());
  }

  // All slots of a tile, or 16 for each of its blocks.
  __device__ __forceinline__ void LoadValues(uint32_t to, uint32_t full, int32_t col,
                                             const HopperCoordinates& at) const {
    const int32_t first_slot = FirstSlot(at);
    if (BlockSlots() == kHopperBlockSlots) {
      ptx::LoadBox(to, &maps_.second, full, col, first_slot, at.batch);
      return;
    }
#pragma unroll
    for (int32_t block = 0; block < Tile::kBlocks; ++block) {
      ptx::LoadBox(to + block * kHopperBlockSlots * kHopperLineBytes, &maps_.second, full, col,
                   first_slot + block * BlockSlots(), at.batch);
    }
  }

  // The offsets within a one-hot matrix that hold ones.
  struct Marks {
    uint32_t of[kOwned];
    __device__ __forceinline__ Marks() {
#pragma unroll
      for (int32_t i = 0; i < kOwned; ++i) of[i] = kNothing;
    }
  };
  struct Index {
    uint32_t of[kOwned];
  };

  // kNothing for slots that hold nothing.
  __device__ __forceinline__ Index FetchIndex(const uint8_t* indices, int32_t first_slot) const {
    Index index;
#pragma unroll
    for (int32_t i = 0; i < kOwned; ++i) {
      const int32_t ahead = i * 2 * BlockSlots();
      const bool is_slot = lane_ + i * 32 < Tile::kSlots && lane_ % 16 < BlockSlots() &&
                           first_slot + ahead < args_.valid_kept;
      index.of[i] = is_slot ? uint32_t{__ldg(indices + ahead)} : kNothing;
    }
    return index;
  }

  __device__ __forceinline__ void MarkGroup(Marks& marks, uint32_t one_hot,
                                            const Index& index) const {
#pragma unroll
    for (int32_t i = 0; i < kOwned; ++i) {
      const int32_t slot = lane_ + i * 32;
      if (marks.of[i] != kNothing) ptx::StoreShared(one_hot + marks.of[i], uint16_t{0});
      marks.of[i] = kNothing;
      if (index.of[i] == kNothing) continue;
      const int32_t in_window = min(static_cast<int32_t>(index.of[i]), args_.m - 1);
      const int32_t window = args_.by_n.Quotient(Tile::kFullBlocks ? slot : slot % 16);
      const int32_t feature = window * args_.m + in_window;
      marks.of[i] = slot / 16 * Tile::kOneHotBlockBytes +
                    OneHotOffset<Tile>(slot % 16, feature % Tile::kFeatures);
      ptx::StoreShared(one_hot + marks.of[i], kOne);
    }
  }

  const HopperArgs& args_;
  const HopperMaps& maps_;
  const HopperShared<Tile> shared_;
  const HopperWalk walk_;
  const int32_t lane_;
};

}  // namespace jax_nm
