// The warpgroup that fills the ring: it gathers lines of x and fetches the values.
#pragma once

#include "hopper_ring.cuh"
#include "hopper_walk.cuh"
#include "ptx.cuh"

namespace jax_nm {

// Each warp gathers 16 of a stage's 64 lines. Lane l owns the index of its warp's line l % 16;
// every line's offset then reaches the lanes that copy it by a shuffle.
template <class Tile>
class HopperProducer {
 public:
  __device__ __forceinline__ HopperProducer(const HopperArgs& args, const CUtensorMap* values_map,
                                            const HopperShared<Tile>& shared)
      : args_(args),
        values_map_(values_map),
        shared_(shared),
        lane_(threadIdx.x % 32),
        first_line_(threadIdx.x / 32 * kWarpLines) {}

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_, blockIdx.x, gridDim.x);
    const int32_t count = walk.Count();
    if (count == 0) return;
    HopperWork work = walk.Work(0);
    HopperCoordinates at = LocateHopperTile(args_, work.tile);
    const uint8_t* indices = Indices(at);
    uint8_t index = Fetch(indices, work.first_step);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t row = at.row_tile * Tile::kBlockRows + lane_ % 8 * 8;
      const char* x = static_cast<const char*>(args_.x) + at.batch * args_.x_batch_bytes + row * 2;
      const int32_t rows_left = args_.rows - row;
      const int32_t first_col = at.col_tile * Tile::kBlockCols;
      const int32_t batch = at.batch;
      const int32_t last_step = work.last_step;
      for (int32_t step = work.first_step; step < last_step; ++step) {
        const uint32_t offset = Offset(step, index);
        // One step ahead, and across tiles, so that no copy waits for an index.
        if (step + 1 < last_step) {
          index = Fetch(indices, step + 1);
        } else if (i + 1 < count) {
          work = walk.Work(i + 1);
          at = LocateHopperTile(args_, work.tile);
          indices = Indices(at);
          index = Fetch(indices, work.first_step);
        }
        ptx::BarrierWait(shared_.Empty(ring_.stage), ring_.parity ^ 1);
        if (threadIdx.x == 0) FetchValues(first_col, step, batch);
        __syncwarp();
        if ((step + 1) * Tile::kBlockKept <= args_.valid_kept) {
          Gather<false>(x, rows_left, offset);
        } else {
          Gather<true>(x, rows_left, offset);
        }
        ptx::CommitGroup();
        if (in_flight_ == Tile::kLag) {
          Announce<Tile::kLag>(Tile::kLag);
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
  static constexpr int32_t kSlabs = Tile::kBlockRows / kHopperLineElements;

  // The line of the stage that this lane owns, and its slot in the step.
  __device__ __forceinline__ int32_t OwnedLine() const { return first_line_ + lane_ % kWarpLines; }
  __device__ __forceinline__ int32_t OwnedSlot() const { return OwnedLine() % Tile::kBlockKept; }

  __device__ __forceinline__ const uint8_t* Indices(const HopperCoordinates& at) const {
    const int32_t col =
        at.col_tile * Tile::kBlockCols + OwnedLine() / Tile::kBlockKept * Tile::kGroupCols;
    const int32_t group = min(col / args_.vector_length, args_.groups - 1);
    return args_.indices + at.batch * args_.indices_batch + int64_t{group} * args_.kept +
           OwnedSlot();
  }

  __device__ __forceinline__ uint8_t Fetch(const uint8_t* indices, int32_t step) const {
    const int32_t first_slot = step * Tile::kBlockKept;
    return first_slot + OwnedSlot() < args_.valid_kept ? __ldg(indices + first_slot) : 0;
  }

  // Where the feature that the owned slot reads begins in x, in units of 16 bytes.
  __device__ __forceinline__ uint32_t Offset(int32_t step, uint8_t index) const {
    const int32_t slot = step * Tile::kBlockKept + OwnedSlot();
    const int32_t in_window = min(static_cast<int32_t>(index), args_.m - 1);
    const int32_t source = min(args_.by_n.Quotient(slot) * args_.m + in_window, args_.depth - 1);
    const uint32_t pitch = static_cast<uint32_t>(args_.rows) / 8;
    return slot < args_.valid_kept ? source * pitch : kHopperNoLine;
  }

  __device__ __forceinline__ void FetchValues(int32_t first_col, int32_t step,
                                              int32_t batch) const {
    const uint32_t full = shared_.Full(ring_.stage);
    ptx::BarrierArriveExpect(full, Tile::kValuesBytes);
#pragma unroll
    for (int32_t slab = 0; slab < Tile::kValuesSlabs; ++slab) {
      ptx::LoadBox(shared_.Values(ring_.stage) + slab * Tile::kValuesSlabBytes, values_map_, full,
                   first_col + slab * kHopperLineElements, step * Tile::kBlockKept, batch);
    }
  }

  // A warp copies four lines of one slab at a time, 512 consecutive bytes of shared memory: one
  // line of four slabs at a time took up to 1.2 times as long. The eight 16-byte chunks of a line
  // are permuted by the line's number, an exclusive or; that of line 4 + i differs from that of
  // line i by one bit.
  template <bool kPartial>
  __device__ __forceinline__ void Gather(const char* x, int32_t rows_left, uint32_t owned) const {
    const int32_t chunk = lane_ % 8, line = lane_ / 8;
    const uint32_t to =
        shared_.X(ring_.stage) + (first_line_ + line) * kHopperLineBytes + (chunk ^ line) * 16;
#pragma unroll
    for (int32_t i = 0; i < kWarpLines; i += 4) {
      const uint32_t offset = __shfl_sync(0xffffffffu, owned, i + line);
      const bool nothing = kPartial && offset == kHopperNoLine;
      const char* from = x + uint64_t{offset} * 16;
#pragma unroll
      for (int32_t slab = 0; slab < kSlabs; ++slab) {
        ptx::CopyAsync16OrZero(
            (to ^ (i % 8 * 16)) + i * kHopperLineBytes + slab * Tile::kXSlabBytes,
            from + slab * kHopperLineBytes, nothing || rows_left <= slab * kHopperLineElements);
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
  const int32_t first_line_;
  int32_t in_flight_ = 0;
  RingPosition<Tile::kStages> ring_;
};

}  // namespace jax_nm
