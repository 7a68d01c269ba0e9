// A warpgroup that multiplies what lies in the ring and stores its part of the tile.
#pragma once

#include "hopper_ring.cuh"
#include "hopper_staging.cuh"

namespace jax_nm {

template <class T, class Out, class Tile>
class HopperConsumer {
 public:
  __device__ __forceinline__ HopperConsumer(const HopperArgs& args, const CUtensorMap* result_map,
                                            const HopperShared<Tile>& shared, int32_t consumer)
      : args_(args),
        result_map_(result_map),
        shared_(shared),
        consumer_(consumer),
        warp_(threadIdx.x / 32 % kWarpgroupWarps),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Run(int32_t first_tile, int32_t tile_stride) {
    for (int32_t tile = first_tile; tile < args_.tiles; tile += tile_stride) {
      const HopperCoordinates at = LocateHopperTile(args_, tile);
      float sums[Tile::kMTiles][Tile::kN / 2];
      for (int32_t step = 0; step < args_.steps; ++step) {
        ptx::BarrierWait(shared_.Full(ring_.stage), ring_.parity);
        Multiply(sums, step > 0);
        // With this step's products queued, those of the step before are soon done.
        ptx::WgmmaWait<1>();
        if (step > 0) Release(ring_.Before(1));
        ring_.Advance();
      }
      ptx::WgmmaWait<0>();
      Release(ring_.Before(1));
#pragma unroll
      for (int32_t i = 0; i < Tile::kMTiles; ++i) ptx::PinRegisters(sums[i]);
      Store(sums, at);
    }
    if (IsLeader()) ptx::WaitStores();
  }

 private:
  static constexpr int32_t kKPerWgmma = 16;
  using Staging = HopperStaging<Out>;

  __device__ __forceinline__ bool IsLeader() const { return threadIdx.x % kWarpgroupThreads == 0; }

  __device__ __forceinline__ void Multiply(float (&sums)[Tile::kMTiles][Tile::kN / 2],
                                           bool accumulate) const {
    uint32_t x = shared_.X(ring_.stage);
    if constexpr (Tile::kGroups == 2) x += consumer_ * Tile::kBlockKept * kHopperLineBytes;
    const uint32_t values = shared_.Values(ring_.stage);
    constexpr int32_t kMSlab = Tile::kRowsAreM ? Tile::kXSlabBytes : Tile::kValuesSlabBytes;
    constexpr int32_t kNSlab = Tile::kRowsAreM ? Tile::kValuesSlabBytes : Tile::kXSlabBytes;
    const uint32_t m_side = (Tile::kRowsAreM ? x : values) + consumer_ * Tile::kMTiles * kMSlab;
    const uint32_t n_side = Tile::kRowsAreM ? values : x;
    ptx::WgmmaFence();
#pragma unroll
    for (int32_t k = 0; k < Tile::kBlockKept / kKPerWgmma; ++k) {
      const uint32_t k_bytes = k * kKPerWgmma * kHopperLineBytes;
#pragma unroll
      for (int32_t i = 0; i < Tile::kMTiles; ++i) {
        ptx::Wgmma(ptx::OperandTag<T>{}, sums[i],
                   ptx::Descriptor(m_side + i * kMSlab + k_bytes, kMSlab),
                   ptx::Descriptor(n_side + k_bytes, kNSlab), accumulate || k > 0);
      }
    }
    ptx::WgmmaCommit();
  }

  // The stage may be filled again.
  __device__ __forceinline__ void Release(int32_t stage) const {
    if (lane_ == 0) ptx::BarrierArrive(shared_.Empty(stage));
  }

  __device__ __forceinline__ void Store(const float (&sums)[Tile::kMTiles][Tile::kN / 2],
                                        const HopperCoordinates& at) {
    const bool transposed = Tile::kRowsAreM == args_.result_feature_major;
    const int32_t first_row = at.row_tile * Tile::kBlockRows;
    const int32_t first_col = at.col_tile * Tile::kBlockCols;
    const int32_t first_m =
        (Tile::kRowsAreM ? first_row : first_col) + consumer_ * Tile::kConsumerM;
    const int32_t first_n = Tile::kRowsAreM ? first_col : first_row;
#pragma unroll
    for (int32_t i = 0; i < Tile::kMTiles; ++i) {
#pragma unroll
      for (int32_t round = 0; round < Tile::kN / Staging::kLine; ++round) {
        const uint32_t staging = shared_.Staging(consumer_, buffer_);
        if (IsLeader()) ptx::WaitStoresRead<1>();
        Sync();
        const float* round_sums = sums[i] + round * Staging::kSums;
        if (transposed) {
          Staging::Transposed(staging, round_sums, warp_, lane_);
        } else {
          Staging::Plain(staging, round_sums, warp_, lane_);
        }
        ptx::FenceProxyAsync();
        Sync();
        if (IsLeader()) {
          StoreRound(staging, transposed, first_m + i * 64, first_n + round * Staging::kLine,
                     at.batch);
          ptx::CommitStores();
        }
        buffer_ ^= 1;
      }
    }
  }

  __device__ __forceinline__ void StoreRound(uint32_t staging, bool transposed, int32_t m,
                                             int32_t n, int32_t batch) const {
    if (!transposed) {
      ptx::StoreBox(result_map_, staging, n, m, batch);
      return;
    }
#pragma unroll
    for (int32_t slab = 0; slab < Staging::kTransposedSlabs; ++slab) {
      ptx::StoreBox(result_map_, staging + slab * Staging::kLine * kHopperLineBytes,
                    m + slab * Staging::kLine, n, batch);
    }
  }

  // Of this consumer's threads; number 0 is __syncthreads.
  __device__ __forceinline__ void Sync() const {
    ptx::NamedBarrierSync(1 + consumer_, kWarpgroupThreads);
  }

  const HopperArgs& args_;
  const CUtensorMap* result_map_;
  const HopperShared<Tile> shared_;
  const int32_t consumer_;
  const int32_t warp_;
  const int32_t lane_;
  int32_t buffer_ = 0;
  RingPosition<Tile::kStages> ring_;
};

}  // namespace jax_nm
