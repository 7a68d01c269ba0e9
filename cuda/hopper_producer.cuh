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
    IndexQueue queue(*this, walk, count);
    for (int32_t i = 0; i < count; ++i) {
      const HopperWork work = walk.Work(i);
      const HopperCoordinates at = args_.raster.Locate(work.tile);
      const int32_t row = at.row_tile * Tile::kBlockRows + lane_ % 8 * 8;
      const char* x = static_cast<const char*>(args_.x) + at.batch * args_.x_batch_bytes + row * 2;
      const int32_t rows_left = args_.rows - row;
      for (int32_t step = work.first_step; step < work.last_step; ++step) {
        const uint32_t offset = Offset(step, queue.Front());
        if (kHopperWaitsForStages) {
          ptx::BarrierWait(shared_.Empty(ring_.stage), ring_.parity ^ 1);
        }
        TestDelay();
        if (threadIdx.x == 0) FetchValues(at, step);
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
        queue.Pop();
      }
    }
    for (; in_flight_ > 0; --in_flight_) Announce<0>(in_flight_);
  }

 private:
  static constexpr int32_t kWarpLines = kHopperLines / kWarpgroupWarps;
  static constexpr int32_t kSlabs = Tile::kBlockRows / kHopperLineElements;

  // The indices of the steps to come, two steps ahead and across tiles: they come from memory when
  // a group is first met.
  class IndexQueue {
   public:
    __device__ __forceinline__ IndexQueue(const HopperProducer& producer, const HopperWalk& walk,
                                          int32_t count)
        : producer_(producer), walk_(walk), count_(count) {
      Enter();
      first_ = Fetch();
      second_ = Fetch();
    }
    __device__ __forceinline__ uint8_t Front() const { return first_; }
    __device__ __forceinline__ void Pop() {
      first_ = second_;
      second_ = Fetch();
    }

   private:
    __device__ __forceinline__ void Enter() {
      if (i_ == count_) return;
      const HopperWork work = walk_.Work(i_);
      step_ = work.first_step;
      last_step_ = work.last_step;
      indices_ = producer_.Indices(producer_.args_.raster.Locate(work.tile));
    }
    __device__ __forceinline__ uint8_t Fetch() {
      if (i_ == count_) return 0;
      const uint8_t index = producer_.Fetch(indices_, step_);
      if (++step_ == last_step_) {
        ++i_;
        Enter();
      }
      return index;
    }

    const HopperProducer& producer_;
    const HopperWalk& walk_;
    const int32_t count_;
    int32_t i_ = 0;
    int32_t step_ = 0;
    int32_t last_step_ = 0;
    const uint8_t* indices_ = nullptr;
    uint8_t first_;
    uint8_t second_;
  };

  // The line of the stage that this lane owns, and its slot in the step.
  __device__ __forceinline__ int32_t OwnedLine() const { return first_line_ + lane_ % kWarpLines; }
  __device__ __forceinline__ int32_t OwnedSlot() const { return OwnedLine() % Tile::kBlockKept; }

  __device__ __forceinline__ const uint8_t* Indices(const HopperCoordinates& at) const {
    const int32_t col =
        at.col_tile * Tile::kBlockCols + OwnedLine() / Tile::kBlockKept * Tile::kGroupCols;
    const int32_t group = min(args_.by_vector_length.Quotient(col), args_.groups - 1);
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

  __device__ __forceinline__ void FetchValues(const HopperCoordinates& at, int32_t step) const {
    const uint32_t full = shared_.Full(ring_.stage);
    ptx::BarrierArriveExpect(full, Tile::kValuesBytes);
#pragma unroll
    for (int32_t slab = 0; slab < Tile::kValuesSlabs; ++slab) {
      ptx::LoadBox(shared_.Values(ring_.stage) + slab * Tile::kValuesSlabBytes, values_map_, full,
                   at.col_tile * Tile::kBlockCols + slab * kHopperLineElements,
                   step * Tile::kBlockKept, at.batch);
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
    TestDelay();
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
