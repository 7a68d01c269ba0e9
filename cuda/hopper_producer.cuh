// The warpgroup that fills the ring: it gathers lines of x and fetches the values.
#pragma once

#include "hopper_ring.cuh"
#include "hopper_walk.cuh"
#include "ptx.cuh"

namespace jax_nm {

// Teams of warps take the steps in turns, and each warp of a team gathers an even share of the 64
// lines. The lane that owns a line computes where it comes from; a shuffle brings that to the lanes
// that copy it.
template <class Tile>
class HopperProducer {
 public:
  __device__ __forceinline__ HopperProducer(const HopperArgs& args, const CUtensorMap* values_map,
                                            const HopperShared<Tile>& shared, int32_t warp)
      : args_(args),
        values_map_(values_map),
        shared_(shared),
        team_(warp / Tile::kTeamWarps),
        first_line_(warp % Tile::kTeamWarps * kWarpLines),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_, blockIdx.x, gridDim.x);
    const int32_t count = walk.Count();
    HopperWork work{};
    int32_t i = -1;
    int32_t left = 0;        // tiles that lie behind this team
    int32_t others = team_;  // steps of the next tile that come before this team's first one
    const auto next_tile = [&] {
      while (++i < count) {
        work = walk.Work(i);
        if (kTeams == 1) return true;
        const int32_t steps = work.last_step - work.first_step;
        if (others < steps) {
          work.first_step += others;
          return true;
        }
        others -= steps;
      }
      return false;
    };
    bool more = next_tile();
    for (; left < i; ++left) {
      if (walk.IsShared(left)) LendRing();
    }
    if (!more) return;
    ring_.Advance(team_);
    HopperCoordinates at = args_.raster.Locate(work.tile);
    Owned<const uint8_t*> indices = Indices(at);
    Owned<uint32_t> index = Fetch(indices, work.first_step);
    while (more) {
      const int32_t row = at.row_tile * Tile::kBlockRows + lane_ % 8 * 8;
      const char* x = static_cast<const char*>(args_.x) + at.batch * args_.x_batch_bytes + row * 2;
      const int32_t rows_left = args_.rows - row;
      const int32_t first_col = at.col_tile * Tile::kBlockCols;
      const int32_t batch = at.batch;
      const int32_t last_step = work.last_step;
      for (int32_t step = work.first_step; step < last_step; step += kTeams) {
        const Owned<uint32_t> offsets = Offsets(step, index);
        // One turn ahead, and across tiles, so that no copy waits for an index.
        if (step + kTeams < last_step) {
          index = Fetch(indices, step + kTeams);
        } else {
          others = step + kTeams - last_step;
          more = next_tile();
          if (more) {
            at = args_.raster.Locate(work.tile);
            indices = Indices(at);
            index = Fetch(indices, work.first_step);
          }
        }
        ptx::BarrierWait(shared_.Empty(ring_.stage), ring_.parity ^ 1);
        TestDelay();
        if (first_line_ == 0 && lane_ == 0) FetchValues(first_col, step, batch);
        __syncwarp();
        if ((step + 1) * Tile::kBlockKept <= args_.valid_kept) {
          Gather<false>(x, rows_left, offsets);
        } else {
          Gather<true>(x, rows_left, offsets);
        }
        ptx::CommitGroup();
        if (in_flight_ == Tile::kLag) {
          Announce<Tile::kLag>(Tile::kLag);
        } else {
          ++in_flight_;
        }
        ring_.Advance(kTeams);
      }
      for (; left < i; ++left) {
        if (walk.IsShared(left)) LendRing();
      }
    }
    AnnounceAll();
  }

 private:
  static constexpr int32_t kTeams = Tile::kTeams;
  static constexpr int32_t kWarpLines = kHopperLines / Tile::kTeamWarps;
  static constexpr int32_t kSlabs = Tile::kBlockRows / kHopperLineElements;

  // What a lane holds for the lines of its warp that it owns: line l % 32 and every 32nd from it.
  static constexpr int32_t kOwned = (kWarpLines + 31) / 32;
  template <class T>
  struct Owned {
    T of[kOwned];
  };
  __device__ __forceinline__ int32_t OwnedLine(int32_t i) const {
    return first_line_ + i * 32 + lane_ % kWarpLines;
  }
  __device__ __forceinline__ int32_t OwnedSlot(int32_t i) const {
    return OwnedLine(i) % Tile::kBlockKept;
  }

  __device__ __forceinline__ Owned<const uint8_t*> Indices(const HopperCoordinates& at) const {
    Owned<const uint8_t*> indices;
#pragma unroll
    for (int32_t i = 0; i < kOwned; ++i) {
      const int32_t col =
          at.col_tile * Tile::kBlockCols + OwnedLine(i) / Tile::kBlockKept * Tile::kGroupCols;
      const int32_t group = min(args_.by_vector_length.Quotient(col), args_.groups - 1);
      indices.of[i] = args_.indices + at.batch * args_.indices_batch + int64_t{group} * args_.kept +
                      OwnedSlot(i);
    }
    return indices;
  }

  // Widened at once: moving a byte into its place would wait for the load here, before its step,
  // which took 1.12 times as long.
  __device__ __forceinline__ Owned<uint32_t> Fetch(const Owned<const uint8_t*>& indices,
                                                   int32_t step) const {
    const int32_t first_slot = step * Tile::kBlockKept;
    Owned<uint32_t> fetched;
#pragma unroll
    for (int32_t i = 0; i < kOwned; ++i) {
      const bool is_valid = first_slot + OwnedSlot(i) < args_.valid_kept;
      fetched.of[i] = is_valid ? uint32_t{__ldg(indices.of[i] + first_slot)} : 0u;
    }
    return fetched;
  }

  // Where the features that the owned slots read begin in x, in units of 16 bytes.
  __device__ __forceinline__ Owned<uint32_t> Offsets(int32_t step,
                                                     const Owned<uint32_t>& index) const {
    Owned<uint32_t> offsets;
#pragma unroll
    for (int32_t i = 0; i < kOwned; ++i) {
      const int32_t slot = step * Tile::kBlockKept + OwnedSlot(i);
      const int32_t in_window = min(static_cast<int32_t>(index.of[i]), args_.m - 1);
      const int32_t source = min(args_.by_n.Quotient(slot) * args_.m + in_window, args_.depth - 1);
      const uint32_t pitch = static_cast<uint32_t>(args_.rows) / 8;
      offsets.of[i] = slot < args_.valid_kept ? source * pitch : kHopperNoLine;
    }
    return offsets;
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

  __device__ __forceinline__ void AnnounceAll() {
    for (; in_flight_ > 0; --in_flight_) Announce<0>(in_flight_);
  }

  // Leaves the ring to the consumers until the cluster has added up its sums: HopperConsumer's
  // AddSums.
  __device__ __forceinline__ void LendRing() {
    AnnounceAll();
    ptx::ClusterSync();
    ptx::ClusterSync();
  }

  // A warp copies four lines of one slab at a time, 512 consecutive bytes of shared memory: one
  // line of four slabs at a time took up to 1.2 times as long. The eight 16-byte chunks of a line
  // are permuted by the line's number, an exclusive or; that of line 4 + i differs from that of
  // line i by one bit.
  template <bool kPartial>
  __device__ __forceinline__ void Gather(const char* x, int32_t rows_left,
                                         const Owned<uint32_t>& offsets) const {
    const int32_t chunk = lane_ % 8, line = lane_ / 8;
    const uint32_t to =
        shared_.X(ring_.stage) + (first_line_ + line) * kHopperLineBytes + (chunk ^ line) * 16;
#pragma unroll
    for (int32_t i = 0; i < kWarpLines; i += 4) {
      const uint32_t offset = __shfl_sync(0xffffffffu, offsets.of[i / 32], i % 32 + line);
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

  const HopperArgs& args_;
  const CUtensorMap* values_map_;
  const HopperShared<Tile> shared_;
  const int32_t team_;
  const int32_t first_line_;
  const int32_t lane_;
  int32_t in_flight_ = 0;  // stages that are not announced yet
  RingPosition<Tile::kStages> ring_;
};

}  // namespace jax_nm
