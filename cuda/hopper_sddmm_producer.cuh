// sddmm's producer: a step is a line of rows, and the lines of x are those of the tile's slots.
#pragma once

#include "hopper_producer.cuh"

namespace jax_nm {

template <class Tile>
class HopperSddmmProducer : private HopperProducer<Tile> {
  using Base = HopperProducer<Tile>;
  template <class T>
  using Owned = typename Base::template Owned<T>;

 public:
  __device__ __forceinline__ HopperSddmmProducer(const HopperArgs& args, const CUtensorMap* dy_map,
                                                 const HopperShared<Tile>& shared, int32_t warp)
      : Base(args, dy_map, shared, warp) {}

  __device__ __forceinline__ void Run() {
    HopperWork work{};
    bool more = this->NextTile(work);
    this->LendRing();
    if (!more) return;
    HopperCoordinates at = args_.raster.Locate(work.tile);
    Owned<uint32_t> index = Fetch(at);
    while (more) {
      const Owned<uint32_t> offsets = Offsets(at, index);
      const char* x = static_cast<const char*>(args_.x) + at.batch * args_.x_batch_bytes;
      const int32_t first_col = at.col_tile * Tile::kBlockCols;
      const int32_t batch = at.batch;
      const int32_t last_step = work.last_step;
      for (int32_t step = work.first_step; step < last_step; step += Base::kTeams) {
        if (step + Base::kTeams >= last_step) {
          // The indices of the next tile come while the last lines of this one do.
          this->others_ = step + Base::kTeams - last_step;
          more = this->NextTile(work);
          if (more) {
            at = args_.raster.Locate(work.tile);
            index = Fetch(at);
          }
        }
        this->WaitForStage();
        this->FetchSecond(first_col, step, batch);
        Gather(x, step, offsets);
        this->FinishStage();
      }
      this->LendRing();
    }
    this->AnnounceAll();
  }

 private:
  using Base::args_;
  using Base::lane_;

  __device__ __forceinline__ int32_t OwnedSlot(const HopperCoordinates& at, int32_t i) const {
    return at.n_tile * Tile::kBlockN + this->OwnedLine(i) % Tile::kGroupLines;
  }

  __device__ __forceinline__ Owned<uint32_t> Fetch(const HopperCoordinates& at) const {
    Owned<uint32_t> fetched;
#pragma unroll
    for (int32_t i = 0; i < Base::kOwned; ++i) {
      const int32_t slot = OwnedSlot(at, i);
      const uint8_t* indices = this->GroupIndices(at, this->OwnedLine(i));
      fetched.of[i] = slot < args_.valid_kept ? uint32_t{__ldg(indices + slot)} : 0u;
    }
    return fetched;
  }

  __device__ __forceinline__ Owned<uint32_t> Offsets(const HopperCoordinates& at,
                                                     const Owned<uint32_t>& index) const {
    Owned<uint32_t> offsets;
#pragma unroll
    for (int32_t i = 0; i < Base::kOwned; ++i) {
      offsets.of[i] = this->Offset(OwnedSlot(at, i), index.of[i]);
    }
    return offsets;
  }

  // A warp copies four lines at a time, 512 consecutive bytes of shared memory. The eight 16-byte
  // chunks of a line are permuted by the line's number, as in spmm's producer.
  __device__ __forceinline__ void Gather(const char* x, int32_t step,
                                         const Owned<uint32_t>& offsets) const {
    const int32_t chunk = lane_ % 8, line = lane_ / 8;
    const int32_t row = step * Tile::kBlockDepth + chunk * Tile::kChunkElements;
    const bool no_rows = row >= args_.rows;
    const uint32_t to = this->shared_.X(this->ring_.stage) +
                        (this->first_line_ + line) * kHopperLineBytes + (chunk ^ line) * 16;
#pragma unroll
    for (int32_t i = 0; i < Base::kWarpLines; i += 4) {
      const uint32_t offset = __shfl_sync(0xffffffffu, offsets.of[i / 32], i % 32 + line);
      ptx::CopyAsync16OrZero((to ^ (i % 8 * 16)) + i * kHopperLineBytes,
                             x + uint64_t{offset} * 16 + row * Tile::kElementBytes,
                             no_rows || offset == kHopperNoLine);
    }
  }
};

}  // namespace jax_nm
