// The warps that fill the stages of the kernels for short vectors.
#pragma once

#include "hopper_maps.h"
#include "hopper_walk.cuh"
#include "short_ring.cuh"

namespace jax_nm {

template <class Tile>
class ShortProducer {
 public:
  __device__ __forceinline__ ShortProducer(const ShortArgs& args, const HopperMaps& maps,
                                           const ShortShared& shared)
      : args_(args),
        common_(args.common),
        maps_(maps),
        shared_(shared),
        walk_(args.common, blockIdx.x, gridDim.x),
        lane_(threadIdx.x % 32) {}

  // One warp: the windows of x, whole, and the values, by TMA.
  __device__ __forceinline__ void Fetch() const {
    ShortTurn turn;
    for (int32_t i = 0; i < walk_.Count(); ++i) {
      const HopperCoordinates at = common_.raster.Locate(walk_.Work(i).tile);
      const int32_t row = at.n_tile * Tile::kBlockRows, col = at.col_tile * Tile::kBlockCols;
      for (int32_t step = 0; step < common_.steps; ++step) {
        TestDelay();
        ptx::BarrierWait(shared_.Empty(turn.stage), turn.parity ^ 1);
        if (lane_ == 0) FetchStage(turn.stage, row, col, step, at.batch);
        __syncwarp();
        turn.Advance(args_.stages);
      }
    }
  }

  // Warp `turn` of kShortDecoders, which take the steps in turns: where the lines of slots are.
  __device__ __forceinline__ void Decode(int32_t decoder) const {
    ShortTurn turn;
    int32_t others = decoder;  // whose turn comes before
    for (int32_t i = 0; i < walk_.Count(); ++i) {
      const HopperCoordinates at = common_.raster.Locate(walk_.Work(i).tile);
      for (int32_t step = 0; step < common_.steps; ++step) {
        if (others == 0) {
          DecodeStage(turn, at, step);
          others = kShortDecoders;
        }
        --others;
        turn.Advance(args_.stages);
      }
    }
  }

 private:
  __device__ __forceinline__ void FetchStage(int32_t stage, int32_t row, int32_t col, int32_t step,
                                             int32_t batch) const {
    const ShortLayout& layout = args_.layout;
    const uint32_t full = shared_.Full(stage);
    ptx::BarrierArriveExpect(full, layout.copied_bytes);
#pragma unroll
    for (int32_t slab = 0; slab < Tile::kSlabs; ++slab) {
      ptx::LoadBox(shared_.X(stage) + slab * layout.x_slab_bytes, &maps_.first, full,
                   row + slab * kHopperLineElements, step * layout.features, batch);
    }
#pragma unroll
    for (int32_t slab = 0; slab < Tile::kBlockCols / kHopperLineElements; ++slab) {
      ptx::LoadBox(shared_.Values(stage) + slab * layout.values_slab_bytes, &maps_.second, full,
                   col + slab * kHopperLineElements, step * layout.slots, batch);
    }
  }

  // A lane takes quads of slots that lie four apart, as a lane of a product reads them.
  static constexpr int32_t kBatch = 4;  // quads whose indices are loaded at once

  struct Quad {
    int32_t chunk;  // of the columns
    int32_t slot;   // in the stage
  };

  __device__ __forceinline__ Quad QuadOf(int32_t number) const {
    const int32_t chunk = args_.by_quads.Quotient(number);
    const int32_t within = number - chunk * (args_.layout.whole_slots / 4);
    return {chunk, within / 4 * kShortSlots + within % 4};
  }

  __device__ __forceinline__ void DecodeStage(const ShortTurn& turn, const HopperCoordinates& at,
                                              int32_t step) const {
    const ShortLayout& layout = args_.layout;
    const int32_t quads = layout.table_bytes / 8;
    const int32_t first_slot = step * layout.slots;
    const int32_t slots = min(layout.slots, common_.valid_kept - first_slot);
    const uint8_t* indices =
        common_.indices + int64_t{at.batch} * common_.indices_batch + first_slot;
    const uint32_t table = shared_.Table(turn.stage);
    for (int32_t first = 0; first < quads; first += 32 * kBatch) {
      uint32_t bytes[kBatch][4];
#pragma unroll
      for (int32_t j = 0; j < kBatch; ++j) {
        const Quad quad = QuadOf(first + j * 32 + lane_);
        const int32_t col = at.col_tile * Tile::kBlockCols + quad.chunk * args_.group_cols;
        const bool exists = first + j * 32 + lane_ < quads && col < common_.cols;
        const int64_t group = exists ? common_.by_vector_length.Quotient(col) : 0;
        const uint8_t* of_group = indices + group * common_.kept;
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          const int32_t slot = quad.slot + k * 4;
          bytes[j][k] = exists && slot < slots ? __ldg(of_group + slot) : 0;
        }
      }
      if (first == 0) {
        TestDelay();
        ptx::BarrierWait(shared_.Empty(turn.stage), turn.parity ^ 1);
      }
#pragma unroll
      for (int32_t j = 0; j < kBatch; ++j) {
        const int32_t number = first + j * 32 + lane_;
        if (number >= quads) break;
        const Quad quad = QuadOf(number);
        uint32_t entries[4];
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          entries[k] = Entry(step, quad.slot + k * 4, slots, bytes[j][k]);
        }
        ptx::StoreShared8(table + number * 8, entries[0] | entries[1] << 16,
                          entries[2] | entries[3] << 16);
      }
    }
    __syncwarp();
    TestDelay();
    if (lane_ == 0) ptx::BarrierArrive(shared_.Full(turn.stage));
  }

  // The byte of a slab at which the line of a slot's feature begins, exchanged with what the
  // swizzle adds to the number of a vector in the line. Slots that hold nothing read zeros: where
  // all slots of a stage are whole products, only the last stage has such slots, and features past
  // the end of x.
  __device__ __forceinline__ uint32_t Entry(int32_t step, int32_t slot, int32_t slots,
                                            uint32_t byte) const {
    const ShortLayout& layout = args_.layout;
    const int32_t features = common_.depth - step * layout.features;  // that are left
    const int32_t offset = min(static_cast<int32_t>(byte), common_.m - 1);
    const int32_t feature = min(common_.by_n.Quotient(slot) * common_.m + offset, features - 1);
    const int32_t zeros = layout.HasPadding() ? layout.features : features;
    const int32_t line = slot < slots ? feature : zeros;
    return line * kHopperLineBytes + line % 8 * 16;
  }

  const ShortArgs& args_;
  const HopperArgs& common_;
  const HopperMaps& maps_;
  const ShortShared& shared_;
  const HopperWalk walk_;
  const int32_t lane_;
};

}  // namespace jax_nm
