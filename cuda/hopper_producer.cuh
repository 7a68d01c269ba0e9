// What the producers of the Hopper kernels have in common. A producer is the warpgroup that fills
// the ring: it gathers lines of x by 16-byte cp.async and fetches the other operand by TMA.
#pragma once

#include "hopper_ring.cuh"
#include "hopper_walk.cuh"
#include "ptx.cuh"

namespace jax_nm {

// Teams of warps take the steps in turns, and each warp of a team gathers an even share of the
// lines of a stage. The lane that owns a line computes where it comes from; a shuffle brings that
// to the lanes that copy it.
template <class Tile>
class HopperProducer {
 protected:
  __device__ __forceinline__ HopperProducer(const HopperArgs& args, const CUtensorMap* second_map,
                                            const HopperShared<Tile>& shared, int32_t warp)
      : args_(args),
        second_map_(second_map),
        shared_(shared),
        walk_(args, blockIdx.x, gridDim.x),
        count_(walk_.Count()),
        team_(warp / Tile::kTeamWarps),
        first_line_(warp % Tile::kTeamWarps * kWarpLines),
        lane_(threadIdx.x % 32),
        others_(team_) {
    ring_.Advance(team_);
  }

  static constexpr int32_t kTeams = Tile::kTeams;
  static constexpr int32_t kWarpLines = Tile::kLines / Tile::kTeamWarps;

  // What a lane holds for the lines of its warp that it owns: line l % 32 and every 32nd from it.
  static constexpr int32_t kOwned = (kWarpLines + 31) / 32;
  template <class T>
  struct Owned {
    T of[kOwned];
  };
  __device__ __forceinline__ int32_t OwnedLine(int32_t i) const {
    return first_line_ + i * 32 + lane_ % kWarpLines;
  }

  // Moves to the next tile in which this team has a step, the first one of `work`.
  __device__ __forceinline__ bool NextTile(HopperWork& work) {
    while (++tile_ < count_) {
      work = walk_.Work(tile_);
      if (kTeams == 1) return true;
      const int32_t steps = work.last_step - work.first_step;
      if (others_ < steps) {
        work.first_step += others_;
        return true;
      }
      others_ -= steps;
    }
    return false;
  }

  // The indices of the group of the columns that line `line` is gathered for.
  __device__ __forceinline__ const uint8_t* GroupIndices(const HopperCoordinates& at,
                                                         int32_t line) const {
    const int32_t col =
        at.col_tile * Tile::kBlockCols + line / Tile::kGroupLines * Tile::kGroupCols;
    const int32_t group = min(args_.by_vector_length.Quotient(col), args_.groups - 1);
    return args_.indices + at.batch * args_.indices_batch + int64_t{group} * args_.kept;
  }

  // Where the feature that a slot reads begins in x, in units of 16 bytes.
  __device__ __forceinline__ uint32_t Offset(int32_t slot, uint32_t index) const {
    const int32_t in_window = min(static_cast<int32_t>(index), args_.m - 1);
    const int32_t source = min(args_.by_n.Quotient(slot) * args_.m + in_window, args_.depth - 1);
    const uint32_t pitch = static_cast<uint32_t>(args_.rows) / Tile::kChunkElements;
    return slot < args_.valid_kept ? source * pitch : kHopperNoLine;
  }

  __device__ __forceinline__ void WaitForStage() const {
    ptx::BarrierWait(shared_.Empty(ring_.stage), ring_.parity ^ 1);
    TestDelay();
  }

  // The other operand of a stage, a box for each consumer.
  __device__ __forceinline__ void FetchSecond(int32_t first_col, int32_t step,
                                              int32_t batch) const {
    if (first_line_ == 0 && lane_ == 0) {
      const uint32_t full = shared_.Full(ring_.stage);
      ptx::BarrierArriveExpect(full, Tile::kSlabsBytes);
#pragma unroll
      for (int32_t slab = 0; slab < kHopperConsumers; ++slab) {
        const int32_t col = first_col + slab * 64;
        const int32_t depth = step * Tile::kBlockDepth;
        ptx::LoadBox(shared_.Second(ring_.stage) + slab * Tile::kSlabBytes, second_map_, full,
                     Tile::kColsContiguous ? col : depth, Tile::kColsContiguous ? depth : col,
                     batch);
      }
    }
    __syncwarp();
  }

  // Ends a stage whose copies have been issued.
  __device__ __forceinline__ void FinishStage() {
    if constexpr (Tile::kWgmmaReadsX) {
      ptx::CommitGroup();
      if (in_flight_ == Tile::kLag) {
        Announce<Tile::kLag>(Tile::kLag);
      } else {
        ++in_flight_;
      }
    } else {
      TestDelay();
      ptx::BarrierArriveAfterCopies(shared_.Full(ring_.stage));
    }
    ring_.Advance(kTeams);
  }

  __device__ __forceinline__ void AnnounceAll() {
    if constexpr (Tile::kWgmmaReadsX) {
      for (; in_flight_ > 0; --in_flight_) Announce<0>(in_flight_);
    }
  }

  // For every shared tile that lies behind this team, leaves the ring to the consumers until the
  // cluster has added up its sums: HopperConsumer's AddSums.
  __device__ __forceinline__ void LendRing() {
    for (; left_ < tile_; ++left_) {
      if (!walk_.IsShared(left_)) continue;
      AnnounceAll();
      ptx::ClusterSync();
      ptx::ClusterSync();
    }
  }

  const HopperArgs& args_;
  const CUtensorMap* second_map_;
  const HopperShared<Tile> shared_;
  const HopperWalk walk_;
  const int32_t count_;
  const int32_t team_;
  const int32_t first_line_;
  const int32_t lane_;
  int32_t others_;     // steps of the next tile that come before this team's first one
  int32_t tile_ = -1;  // that NextTile moved to
  int32_t left_ = 0;   // tiles that LendRing has seen
  int32_t in_flight_ = 0;
  RingPosition<Tile::kStages> ring_;

 private:
  // Tells the consumers that this warp's lines of its stage `distance` turns ago have arrived. The
  // fence to the proxy through which wgmma reads is cheap here, where nobody waits for it; in the
  // consumers it cost 20 % of the kernel's time.
  template <int kPending>
  __device__ __forceinline__ void Announce(int32_t distance) const {
    TestDelay();
    ptx::WaitGroup<kPending>();
    ptx::FenceProxyAsync();
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(shared_.Full(ring_.Before(distance * kTeams)));
  }
};

}  // namespace jax_nm
