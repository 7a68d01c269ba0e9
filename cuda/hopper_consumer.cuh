// A warpgroup that multiplies what lies in the ring and stores its 64 columns of the tile.
#pragma once

#include <type_traits>

#include "activation.cuh"
#include "hopper_maps.h"
#include "hopper_ring.cuh"
#include "hopper_staging.cuh"
#include "hopper_walk.cuh"

namespace jax_nm {

template <class T, class Out, class Tile>
class HopperConsumer {
 public:
  __device__ __forceinline__ HopperConsumer(const HopperArgs& args, const HopperMaps& maps,
                                            const HopperShared<Tile>& shared, int32_t consumer)
      : args_(args),
        maps_(maps),
        shared_(shared),
        consumer_(consumer),
        warp_(threadIdx.x / 32 % kWarpgroupWarps),
        lane_(threadIdx.x % 32),
        rank_(blockIdx.x - args.by_cluster.Quotient(blockIdx.x) * args.cluster) {}

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_, blockIdx.x, gridDim.x);
    const int32_t count = walk.Count();
    Rounded waiting;  // the tile before, on its way out
    HopperCoordinates waiting_at{};
    bool waits = false;
    for (int32_t i = 0; i < count; ++i) {
      const HopperWork work = walk.Work(i);
      const int32_t steps = work.last_step - work.first_step;
      float sums[kSums];
      int32_t step = 0;
      if constexpr (kDefers) {
#pragma unroll
        for (int32_t round = 0; round < kRounds; ++round) {
          if (step < steps) Step(sums, step++);
          if (waits) StoreRound(waiting, round, &maps_.result, waiting_at);
        }
        waits = false;
      }
      for (; step < steps; ++step) Step(sums, step);
      // While the last products are under way.
      const HopperCoordinates at = args_.raster.Locate(work.tile);
      const Bias bias = LoadBias(at);
      ptx::WgmmaWait<0>();
      if constexpr (!kFreesEarly) Release(ring_.Before(1));
      ptx::PinRegisters(sums);
      const bool shared = kShares && work.shared;
      if (shared) AddSums(sums);
      if constexpr (kIsSpmm) {
        if (args_.bias != nullptr) AddBias(sums, bias);
        if (args_.emits_sum) {
          Staging::Round(sums, waiting);
          StoreRounds(waiting, &maps_.sum, at, shared);
        }
        ActivateAll(args_.activation, sums);
      } else {
        ClearPadding(sums, at);
      }
      Staging::Round(sums, waiting);
      if (kDefers && !shared) {
        waiting_at = at;
        waits = true;
      } else {
        StoreRounds(waiting, &maps_.result, at, shared);
        if (shared) ReturnRing();
      }
    }
    if constexpr (kDefers) {
      if (waits) StoreRounds(waiting, &maps_.result, waiting_at, false);
    }
    if (lane_ == 0) ptx::WaitStores();
  }

 private:
  static constexpr bool kIsSpmm = Tile::kOp == Op::kSpmm;
  static constexpr int32_t kN = Tile::kBlockN;
  static constexpr int32_t kSums = kN / 2;  // of a thread
  using Staging = HopperStaging<Out, kSums>;
  using Rounded = typename Staging::Rounded;
  static constexpr int32_t kRounds = kN / Staging::kLine;  // of the epilogue
  static constexpr bool kShares = HopperShares(Tile::kBlockN, sizeof(Out));
  // Results in half precision fit in registers beside the sums of the next tile.
  static constexpr bool kDefers = sizeof(Out) == 2;

  __device__ __forceinline__ bool IsLeader() const { return threadIdx.x % kWarpgroupThreads == 0; }

  __device__ __forceinline__ void Step(float (&sums)[kSums], int32_t step) {
    ptx::BarrierWait(shared_.Full(ring_.stage), ring_.parity);
    if constexpr (kFreesEarly) Release(ring_.stage);
    TestDelay();
    Multiply(sums, step > 0);
    // With this step's products queued, those of the step before are soon done.
    ptx::WgmmaWait<1>();
    if (step > 0 && !kFreesEarly) Release(ring_.Before(1));
    ring_.Advance();
  }

  __device__ __forceinline__ void Multiply(float (&sums)[kSums], bool accumulate) const {
    uint32_t x = shared_.X(ring_.stage);
    if constexpr (Tile::kGroups == 2) x += consumer_ * Tile::kGroupLines * kHopperLineBytes;
    const uint32_t second = shared_.Second(ring_.stage) + consumer_ * Tile::kSlabBytes;
    // The reduction runs across the lines in spmm, along them in sddmm.
    using Major = std::conditional_t<kIsSpmm, ptx::MnMajor, ptx::KMajor>;
    constexpr uint32_t kBytes =
        Tile::kWgmmaDepth * (kIsSpmm ? kHopperLineBytes : Tile::kElementBytes);
    ptx::WgmmaFence();
#pragma unroll
    for (int32_t k = 0; k < Tile::kBlockDepth / Tile::kWgmmaDepth; ++k) {
      ptx::Wgmma(ptx::OperandTag<T, Major>{}, sums,
                 ptx::Descriptor(second + k * kBytes, Tile::kSlabBytes),
                 ptx::Descriptor(x + k * kBytes, Tile::kXSlabBytes), accumulate || k > 0);
    }
    ptx::WgmmaCommit();
  }

  // The stage may be filled again.
  __device__ __forceinline__ void Release(int32_t stage) const {
    TestDelay();
    if (lane_ == 0) ptx::BarrierArrive(shared_.Empty(stage));
  }

  // ---- Tiles that the blocks of a cluster share ----

  // Whether this block completes the round of the epilogue.
  __device__ __forceinline__ bool Completes(int32_t round) const {
    return round * args_.cluster / kRounds == rank_;
  }

  // Every block leaves the sums of the rounds that others complete in its shared memory, where the
  // ring was, as its threads hold them. Each round is added up in an order of its own that does not
  // change. The ring stays lent until ReturnRing.
  __device__ __forceinline__ void AddSums(float (&sums)[kSums]) const {
    constexpr int32_t kParts = kSums / kRounds / 4;  // of a round
    constexpr uint32_t kPitch = kWarpgroupThreads * sizeof(float4);
    // Behind this, both consumers have read the last stage.
    ptx::NamedBarrierSync(1 + kHopperConsumers, kHopperConsumers * kWarpgroupThreads);
    const uint32_t own = shared_.Sums(consumer_) + threadIdx.x % kWarpgroupThreads * sizeof(float4);
#pragma unroll
    for (int32_t round = 0; round < kRounds; ++round) {
      if (Completes(round)) continue;
#pragma unroll
      for (int32_t part = round * kParts; part < (round + 1) * kParts; ++part) {
        ptx::StoreShared(own + part * kPitch, make_float4(sums[part * 4], sums[part * 4 + 1],
                                                          sums[part * 4 + 2], sums[part * 4 + 3]));
      }
    }
    TestDelay();
    ptx::ClusterSync();
#pragma unroll
    for (int32_t round = 0; round < kRounds; ++round) {
      if (!Completes(round)) continue;
      int32_t rank = rank_;
      for (int32_t peer = 1; peer < args_.cluster; ++peer) {
        if (++rank == args_.cluster) rank = 0;
        const uint32_t from = ptx::PeerAddress(own, rank) + round * kParts * kPitch;
        float4 parts[kParts];
#pragma unroll
        for (int32_t i = 0; i < kParts; ++i) parts[i] = ptx::LoadPeer(from + i * kPitch);
#pragma unroll
        for (int32_t i = 0; i < kParts; ++i) {
          float* to = sums + (round * kParts + i) * 4;
          to[0] += parts[i].x;
          to[1] += parts[i].y;
          to[2] += parts[i].z;
          to[3] += parts[i].w;
        }
      }
    }
  }

  // When no block of the cluster reads sums any more, the ring is the producer's again.
  __device__ __forceinline__ void ReturnRing() const {
    TestDelay();
    ptx::FenceProxyAsync();
    ptx::ClusterSync();
  }

  // ---- Epilogue ----

  // Of a thread's two columns.
  struct Bias {
    float of[2];
  };

  __device__ __forceinline__ Bias LoadBias(const HopperCoordinates& at) const {
    Bias bias{};
    if constexpr (kIsSpmm) {
      if (args_.bias == nullptr) return bias;
#pragma unroll
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t col = FirstCol(at) + warp_ * 16 + lane_ / 4 + half * 8;
        if (col < args_.cols) {
          bias.of[half] = __ldg(args_.bias + int64_t{at.batch} * args_.cols + col);
        }
      }
    }
    return bias;
  }

  __device__ __forceinline__ void AddBias(float (&sums)[kSums], const Bias& bias) const {
#pragma unroll
    for (int32_t i = 0; i < kSums; ++i) sums[i] += bias.of[i / 2 % 2];
  }

  // The slots behind the valid ones have no gradient, whatever dy holds.
  __device__ __forceinline__ void ClearPadding(float (&sums)[kSums],
                                               const HopperCoordinates& at) const {
    const int32_t valid = args_.valid_kept - at.n_tile * kN;
    if (valid >= kN) return;
#pragma unroll
    for (int32_t i = 0; i < kSums; ++i) {
      if (i / 4 * 8 + lane_ % 4 * 2 + i % 2 >= valid) sums[i] = 0.0f;
    }
  }

  __device__ __forceinline__ int32_t FirstCol(const HopperCoordinates& at) const {
    return at.col_tile * Tile::kBlockCols + consumer_ * 64;
  }

  // All rounds, or those of a shared tile that this block completes.
  __device__ __forceinline__ void StoreRounds(const Rounded& rounded, const CUtensorMap* map,
                                              const HopperCoordinates& at, bool shared) {
#pragma unroll
    for (int32_t round = 0; round < kRounds; ++round) {
      if (!shared || Completes(round)) StoreRound(rounded, round, map, at);
    }
  }

  __device__ __forceinline__ void StoreRound(const Rounded& rounded, int32_t round,
                                             const CUtensorMap* map, const HopperCoordinates& at) {
    const uint32_t staging = shared_.Staging(consumer_, buffer_);
    const int32_t n = at.n_tile * kN + round * Staging::kLine;
    const int32_t col = FirstCol(at);
    if (kIsSpmm && args_.result_feature_major) {
      // Every warp stores its own columns, and waits for no other.
      if (lane_ == 0) ptx::WaitStoresRead<1>();
      __syncwarp();
      Staging::FeatureMajor(staging, rounded, round, warp_, lane_);
      ptx::FenceProxyAsync();
      __syncwarp();
      if (lane_ == 0) {
        ptx::StoreBox(map, staging + warp_ * kHopperWarpCols * kHopperLineBytes, n,
                      col + warp_ * kHopperWarpCols, at.batch);
        ptx::CommitStores();
      }
    } else {
      if (IsLeader()) ptx::WaitStoresRead<1>();
      Sync();
      Staging::RowMajor(staging, rounded, round, warp_, lane_);
      ptx::FenceProxyAsync();
      Sync();
      if (IsLeader()) {
#pragma unroll
        for (int32_t slab = 0; slab < Staging::kRowMajorSlabs; ++slab) {
          ptx::StoreBox(map, staging + slab * Staging::kLine * kHopperLineBytes,
                        col + slab * Staging::kLine, n, at.batch);
        }
        ptx::CommitStores();
      }
    }
    buffer_ ^= 1;
  }

  // Of this consumer's threads; number 0 is __syncthreads.
  __device__ __forceinline__ void Sync() const {
    ptx::NamedBarrierSync(1 + consumer_, kWarpgroupThreads);
  }

  const HopperArgs& args_;
  const HopperMaps& maps_;
  const HopperShared<Tile> shared_;
  const int32_t consumer_;
  const int32_t warp_;
  const int32_t lane_;
  const int32_t rank_;  // of the block in its cluster
  int32_t buffer_ = 0;
  RingPosition<Tile::kStages> ring_;
};

}  // namespace jax_nm
