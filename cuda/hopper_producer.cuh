// The warpgroup that fills the ring: it gathers lines of x and fetches the values.
#pragma once

#include "hopper_ring.cuh"
#include "ptx.cuh"

namespace jax_nm {

// One warp gathers 16 of the stage's 64 lines. Lanes 0 to 15 (and 16 to 31 alike) each own the
// index of one line; every line's offset then reaches the lanes that copy it by a shuffle. The
// copying lanes are `kChunkLanes` neighbours along rows times the runs of lines that they walk.
template <class Tile>
class HopperProducer {
 public:
  __device__ __forceinline__ HopperProducer(const HopperArgs& args, const CUtensorMap* values_map,
                                            const HopperShared<Tile>& shared)
      : args_(args),
        values_map_(values_map),
        shared_(shared),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32) {
    const int32_t first_line = warp_ * kWarpLines + lane_ / kChunkLanes * kRun;
    const int32_t chunk = lane_ % kChunkLanes;
    x_offset_ = chunk / 8 * Tile::kXSlabBytes + first_line * kHopperLineBytes +
                ((chunk % 8) ^ (first_line % 8)) * 16;
    const int32_t line = warp_ * kWarpLines + lane_ % kWarpLines;
    group_in_tile_ = line / Tile::kBlockKept;
    slot_in_step_ = line % Tile::kBlockKept;
  }

  __device__ __forceinline__ void Run(int32_t first_tile, int32_t tile_stride) {
    HopperCoordinates at = LocateHopperTile(args_, first_tile);
    const uint8_t* indices = Indices(at);
    uint8_t index = Fetch(indices, 0);
    for (int32_t tile = first_tile; tile < args_.tiles; tile += tile_stride) {
      const int32_t first_row = at.row_tile * Tile::kBlockRows;
      const int32_t chunk_row = first_row + lane_ % kChunkLanes * 8;
      const char* x = static_cast<const char*>(args_.x) + at.batch * args_.x_batch_bytes +
                      int64_t{chunk_row} * 2;
      const int32_t first_col = at.col_tile * Tile::kBlockCols;
      const int32_t batch = at.batch;
      for (int32_t step = 0; step < args_.steps; ++step) {
        const uint32_t offset = Offset(step, index);
        // One step ahead, and across tiles, so that no copy waits for an index.
        if (step + 1 < args_.steps) {
          index = Fetch(indices, step + 1);
        } else if (tile + tile_stride < args_.tiles) {
          at = LocateHopperTile(args_, tile + tile_stride);
          indices = Indices(at);
          index = Fetch(indices, 0);
        }
        ptx::BarrierWait(shared_.Empty(ring_.stage), ring_.parity ^ 1);
        if (threadIdx.x == 0) FetchValues(first_col, step, batch);
        if ((step + 1) * Tile::kBlockKept <= args_.valid_kept) {
          Gather<false>(x, chunk_row, offset);
        } else {
          Gather<true>(x, chunk_row, offset);
        }
        ptx::CommitGroup();
        if (in_flight_ == kHopperLag) {
          Announce<kHopperLag>(kHopperLag);
        } else {
          ++in_flight_;
        }
        ring_.Advance();
      }
    }
    for (; in_flight_ > 0; --in_flight_) Announce<0>(in_flight_);
  }

 private:
  static constexpr int32_t kWarpLines = kHopperLines / kWarpgroupWarps;
  static constexpr int32_t kChunkLanes = Tile::kBlockRows / 8 < 16 ? Tile::kBlockRows / 8 : 16;
  static constexpr int32_t kRun = kWarpLines / (32 / kChunkLanes);
  static constexpr int32_t kPassRows = kChunkLanes * 8;
  static constexpr int32_t kPasses = Tile::kBlockRows / kPassRows;
  static_assert(kWarpLines == 16, "a lane of each half-warp owns one index");
  static_assert(kRun == 4 || kRun == 8, "a run begins at a multiple of its length in a pattern");

  __device__ __forceinline__ const uint8_t* Indices(const HopperCoordinates& at) const {
    const int32_t col = at.col_tile * Tile::kBlockCols + group_in_tile_ * Tile::kGroupCols;
    const int32_t group = min(col / args_.vector_length, args_.groups - 1);
    return args_.indices + at.batch * args_.indices_batch + int64_t{group} * args_.kept +
           slot_in_step_;
  }

  __device__ __forceinline__ uint8_t Fetch(const uint8_t* indices, int32_t step) const {
    const int32_t first_slot = step * Tile::kBlockKept;
    return first_slot + slot_in_step_ < args_.valid_kept ? __ldg(indices + first_slot) : 0;
  }

  // Where the feature that this lane's slot reads begins in x, in units of 16 bytes.
  __device__ __forceinline__ uint32_t Offset(int32_t step, uint8_t index) const {
    const int32_t slot = step * Tile::kBlockKept + slot_in_step_;
    const int32_t in_window = min(static_cast<int32_t>(index), args_.m - 1);
    const int32_t source = min(args_.by_n.Quotient(slot) * args_.m + in_window, args_.depth - 1);
    const uint32_t pitch = static_cast<uint32_t>(args_.rows) / 8;
    return slot < args_.valid_kept ? source * pitch : kHopperNoLine;
  }

  __device__ __forceinline__ void FetchValues(int32_t first_col, int32_t step, int32_t batch) {
    const uint32_t full = shared_.Full(ring_.stage);
    ptx::BarrierArriveExpect(full, Tile::kValuesBytes);
#pragma unroll
    for (int32_t slab = 0; slab < Tile::kValuesSlabs; ++slab) {
      ptx::LoadBox(shared_.Values(ring_.stage) + slab * Tile::kValuesSlabBytes, values_map_, full,
                   first_col + slab * kHopperLineRows, step * Tile::kBlockKept, batch);
    }
  }

  // The eight 16-byte chunks of a 128-byte line are permuted by the line's number: in a run of
  // lines that begins at a multiple of its length, line i differs from the first one by an
  // exclusive or.
  template <bool kPartial>
  __device__ __forceinline__ void Gather(const char* x, int32_t chunk_row, uint32_t offset) const {
    const uint32_t to = shared_.X(ring_.stage) + x_offset_;
#pragma unroll
    for (int32_t i = 0; i < kRun; ++i) {
      const uint32_t line_offset = __shfl_sync(0xffffffffu, offset, lane_ / kChunkLanes * kRun + i);
      const char* from = x + uint64_t{line_offset} * 16;
#pragma unroll
      for (int32_t pass = 0; pass < kPasses; ++pass) {
        const bool ignore = chunk_row + pass * kPassRows >= args_.rows ||
                            (kPartial && line_offset == kHopperNoLine);
        ptx::CopyAsync16OrZero((to ^ (i * 16)) + i * kHopperLineBytes +
                                   pass * (kPassRows / kHopperLineRows) * Tile::kXSlabBytes,
                               from + pass * kPassRows * 2, ignore);
      }
    }
  }

  // Tells the consumers that this warp's lines of the stage `distance` steps ago have arrived. The
  // fence to the proxy through which wgmma reads is cheap here, where nobody waits for it; in the
  // consumers it cost 20 % of the kernel's time.
  template <int kPending>
  __device__ __forceinline__ void Announce(int32_t distance) const {
    ptx::WaitGroup<kPending>();
    ptx::FenceProxyAsync();
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(shared_.Full(ring_.Before(distance)));
  }

  const HopperArgs& args_;
  const CUtensorMap* values_map_;
  const HopperShared<Tile> shared_;
  const int32_t lane_;
  const int32_t warp_;
  uint32_t x_offset_;
  int32_t group_in_tile_;
  int32_t slot_in_step_;
  int32_t in_flight_ = 0;
  RingPosition<Tile::kStages> ring_;
};

}  // namespace jax_nm
