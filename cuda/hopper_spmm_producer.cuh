// spmm's producer: every slot's line of x comes from a feature of its own.
#pragma once

#include "hopper_producer.cuh"

namespace jax_nm {

template <class Tile>
class HopperSpmmProducer : private HopperProducer<Tile> {
  using Base = HopperProducer<Tile>;
  template <class T>
  using Owned = typename Base::template Owned<T>;

 public:
  __device__ __forceinline__ HopperSpmmProducer(const HopperArgs& args,
                                                const CUtensorMap* values_map,
                                                const HopperShared<Tile>& shared, int32_t warp)
      : Base(args, values_map, shared, warp) {}

  __device__ __forceinline__ void Run() {
    HopperWork work{};
    bool more = this->NextTile(work);
    this->LendRing();
    if (!more) return;
    HopperCoordinates at = args_.raster.Locate(work.tile);
    Owned<const uint8_t*> indices = Indices(at);
    Owned<uint32_t> index = Fetch(indices, work.first_step);
    while (more) {
      const int32_t row = at.n_tile * Tile::kBlockN + lane_ % 8 * Tile::kChunkElements;
      const char* x = static_cast<const char*>(args_.x) + at.batch * args_.x_batch_bytes +
                      row * Tile::kElementBytes;
      const int32_t rows_left = args_.rows - row;
      const int32_t first_col = at.col_tile * Tile::kBlockCols;
      const int32_t batch = at.batch;
      const int32_t last_step = work.last_step;
      for (int32_t step = work.first_step; step < last_step; step += Base::kTeams) {
        const Owned<uint32_t> offsets = Offsets(step, index);
        // One turn ahead, and across tiles, so that no copy waits for an index.
        if (step + Base::kTeams < last_step) {
          index = Fetch(indices, step + Base::kTeams);
        } else {
          this->others_ = step + Base::kTeams - last_step;
          more = this->NextTile(work);
          if (more) {
            at = args_.raster.Locate(work.tile);
            indices = Indices(at);
            index = Fetch(indices, work.first_step);
          }
        }
        this->WaitForStage();
        this->FetchSecond(first_col, step, batch);
        if ((step + 1) * Tile::kBlockDepth <= args_.valid_kept) {
          Gather<false>(x, rows_left, offsets);
        } else {
          Gather<true>(x, rows_left, offsets);
        }
        this->FinishStage();
      }
      this->LendRing();
    }
    this->AnnounceAll();
  }

 private:
  using Base::args_;
  using Base::lane_;

  __device__ __forceinline__ int32_t OwnedSlot(int32_t i) const {
    return this->OwnedLine(i) % Tile::kBlockDepth;
  }

  __device__ __forceinline__ Owned<const uint8_t*> Indices(const HopperCoordinates& at) const {
    Owned<const uint8_t*> indices;
#pragma unroll
    for (int32_t i = 0; i < Base::kOwned; ++i) {
      indices.of[i] = this->GroupIndices(at, this->OwnedLine(i)) + OwnedSlot(i);
    }
    return indices;
  }

  // Widened at once: moving a byte into its place would wait for the load here, before its step,
  // which took 1.12 times as long.
  __device__ __forceinline__ Owned<uint32_t> Fetch(const Owned<const uint8_t*>& indices,
                                                   int32_t step) const {
    const int32_t first_slot = step * Tile::kBlockDepth;
    Owned<uint32_t> fetched;
#pragma unroll
    for (int32_t i = 0; i < Base::kOwned; ++i) {
      const bool is_valid = first_slot + OwnedSlot(i) < args_.valid_kept;
      fetched.of[i] = is_valid ? uint32_t{__ldg(indices.of[i] + first_slot)} : 0u;
    }
    return fetched;
  }

  __device__ __forceinline__ Owned<uint32_t> Offsets(int32_t step,
                                                     const Owned<uint32_t>& index) const {
    Owned<uint32_t> offsets;
#pragma unroll
    for (int32_t i = 0; i < Base::kOwned; ++i) {
      offsets.of[i] = this->Offset(step * Tile::kBlockDepth + OwnedSlot(i), index.of[i]);
    }
    return offsets;
  }

  // A warp copies four lines of one slab at a time, 512 consecutive bytes of shared memory: one
  // line of four slabs at a time took up to 1.2 times as long. The eight 16-byte chunks of a line
  // are permuted by the line's number, an exclusive or; that of line 4 + i differs from that of
  // line i by one bit.
  template <bool kPartial>
  __device__ __forceinline__ void Gather(const char* x, int32_t rows_left,
                                         const Owned<uint32_t>& offsets) const {
    const int32_t chunk = lane_ % 8, line = lane_ / 8;
    const uint32_t to = this->shared_.X(this->ring_.stage) +
                        (this->first_line_ + line) * kHopperLineBytes + (chunk ^ line) * 16;
#pragma unroll
    for (int32_t i = 0; i < Base::kWarpLines; i += 4) {
      const uint32_t offset = __shfl_sync(0xffffffffu, offsets.of[i / 32], i % 32 + line);
      const bool nothing = kPartial && offset == kHopperNoLine;
      const char* from = x + uint64_t{offset} * 16;
#pragma unroll
      for (int32_t slab = 0; slab < Tile::kLineSlabs; ++slab) {
        ptx::CopyAsync16OrZero(
            (to ^ (i % 8 * 16)) + i * kHopperLineBytes + slab * Tile::kXSlabBytes,
            from + slab * kHopperLineBytes,
            nothing || rows_left <= slab * (kHopperLineBytes / Tile::kElementBytes));
      }
    }
  }
};

}  // namespace jax_nm
