// A warpgroup that computes 64 rows of a tile of dx.
#pragma once

#include "hopper_maps.h"
#include "hopper_ring.cuh"
#include "hopper_scatter_producer.cuh"
#include "hopper_staging.cuh"
#include "hopper_walk.cuh"

namespace jax_nm {

template <class T, class Out, class Tile>
class HopperScatterConsumer {
 public:
  __device__ __forceinline__ HopperScatterConsumer(const HopperArgs& args, const HopperMaps& maps,
                                                   const HopperShared<Tile>& shared,
                                                   int32_t consumer)
      : args_(args),
        maps_(maps),
        shared_(shared),
        consumer_(consumer),
        warp_(threadIdx.x / 32 % kWarpgroupWarps),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_, blockIdx.x, gridDim.x);
    const int32_t count = walk.Count();
    for (int32_t i = 0; i < count; ++i) {
      float sums[kBlocks][kBlockSums];
      for (int32_t first = 0; first < args_.steps; first += args_.group_steps) {
        const int32_t last = min(first + args_.group_steps, args_.steps);
        float partial[kPartialSums];
        Step<true>(partial);
        // Behind the first product of this group, the scatter of the one before is done.
        if (kOverlaps && first > 0) FinishScatter();
        for (int32_t step = first + 1; step < last; ++step) Step<false>(partial);
        ptx::WgmmaWait<0>();
        if constexpr (!kFreesEarly) Release(ring_.Before(1));
        ptx::PinRegisters(partial);
        Scatter(sums, partial, first > 0);
        if constexpr (!kOverlaps) {
          ptx::WgmmaWait<0>();
          FinishScatter();
        }
      }
      if constexpr (kOverlaps) {
        ptx::WgmmaWait<0>();
        FinishScatter();
      }
#pragma unroll
      for (int32_t block = 0; block < kBlocks; ++block) ptx::PinRegisters(sums[block]);
      Store(sums, args_.raster.Locate(walk.Work(i).tile));
    }
    if (IsLeader()) ptx::WaitStores();
  }

 private:
  static constexpr int32_t kKPerWgmma = 16;
  // Whether a scatter runs beside the next group's product: its operands, the new partial sums and
  // the sums of dx then live together.
  static constexpr bool kOverlaps = Tile::kSlots <= 64;
  static constexpr int32_t kPartialSums = Tile::kSlots / 2;  // of a thread
  static constexpr int32_t kParts = Tile::kParts;
  static constexpr int32_t kBlocks = Tile::kBlocks;
  static constexpr int32_t kBlockSums = Tile::kFeatures / 2;
  // A round of the epilogue is as many features as a line has elements. They are rounded in turns,
  // for want of registers.
  static constexpr int32_t kRoundSums = kHopperLineBytes / static_cast<int32_t>(sizeof(Out)) / 2;
  using Staging = HopperStaging<Out, kRoundSums>;
  static constexpr int32_t kRounds = Tile::kBlockFeatures / Staging::kLine;

  __device__ __forceinline__ bool IsLeader() const { return threadIdx.x % kWarpgroupThreads == 0; }

  template <bool kFirst>
  __device__ __forceinline__ void Step(float (&partial)[kPartialSums]) {
    ptx::BarrierWait(shared_.Full(ring_.stage), ring_.parity);
    if constexpr (kFreesEarly) Release(ring_.stage);
    TestDelay();
    const uint32_t dy = shared_.X(ring_.stage) + consumer_ * Tile::kDySlabBytes;
    const uint32_t values = shared_.Second(ring_.stage);
    ptx::WgmmaFence();
#pragma unroll
    for (int32_t k = 0; k < Tile::kStepCols / kKPerWgmma; ++k) {
      // The reduction runs across the lines of dy and along those of the values.
      constexpr ptx::OperandTag<T, ptx::MAndKMajor> kOperands;
      const uint64_t a =
          ptx::Descriptor(dy + k * kKPerWgmma * kHopperLineBytes, Tile::kDySlabBytes);
      const uint64_t b = ptx::Descriptor(values + k * kKPerWgmma * 2, Tile::kValuesBytes);
      if (kFirst && k == 0) {
        // Not an accumulation that is switched off: the compiler would keep what it does not read.
        ptx::WgmmaFirst(kOperands, partial, a, b);
      } else {
        ptx::Wgmma(kOperands, partial, a, b, true);
      }
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<1>();
    if (!kFirst && !kFreesEarly) Release(ring_.Before(1));
    ring_.Advance();
  }

  // The stage may be filled again.
  __device__ __forceinline__ void Release(int32_t stage) const {
    TestDelay();
    if (lane_ == 0) ptx::BarrierArrive(shared_.Empty(stage));
  }

  // A thread's sums of 64 x 16 are, rounded in pairs, its share of the operand of 16 slots. They
  // are left with what rounding took.
  __device__ __forceinline__ void Scatter(float (&sums)[kBlocks][kBlockSums],
                                          float (&partial)[kPartialSums], bool accumulate) {
    uint32_t rounded[kParts][kBlocks][4];
#pragma unroll
    for (int32_t i = 0; i < kBlocks * 4; ++i) {
#pragma unroll
      for (int32_t part = 0; part < kParts; ++part) {
        const uint32_t pair = RoundPair<__nv_bfloat16>(partial[2 * i], partial[2 * i + 1]);
        rounded[part][i / 4][i % 4] = pair;
        if (part + 1 < kParts) {
          // Exact: bfloat16 is the upper half of float32.
          partial[2 * i] -= __uint_as_float(pair << 16);
          partial[2 * i + 1] -= __uint_as_float(pair & 0xffff0000u);
        }
      }
    }
#pragma unroll
    for (int32_t part = 0; part < kParts; ++part) {
#pragma unroll
      for (int32_t block = 0; block < kBlocks; ++block) ptx::PinRegisters(rounded[part][block]);
    }
    ptx::BarrierWait(shared_.OneHotFull(one_hots_.stage), one_hots_.parity);
    TestDelay();
    ptx::WgmmaFence();
    // Blocks run fastest, so that of two products in a row neither waits for the other's sums.
#pragma unroll
    for (int32_t part = 0; part < kParts; ++part) {
#pragma unroll
      for (int32_t block = 0; block < kBlocks; ++block) {
        const uint32_t one_hot = shared_.OneHot(one_hots_.stage) + block * Tile::kOneHotBlockBytes;
        ptx::WgmmaRegisters(ptx::OperandTag<__nv_bfloat16, ptx::MnMajor>{}, sums[block],
                            rounded[part][block], OneHotDescriptor(one_hot),
                            part > 0 || accumulate);
      }
    }
    ptx::WgmmaCommit();
    one_hots_.Advance();
  }

  // Once the products of the last scatter are done: its one-hots may be built anew.
  __device__ __forceinline__ void FinishScatter() const {
    TestDelay();
    if (lane_ == 0) ptx::BarrierArrive(shared_.OneHotEmpty(one_hots_.Before(1)));
  }

  static __device__ __forceinline__ uint64_t OneHotDescriptor(uint32_t one_hot) {
    if constexpr (Tile::kFeatures == 32) {
      // One slab: its stride has no meaning.
      return ptx::DescriptorOfHalfLines(one_hot, /*slab_bytes=*/512);
    } else {
      return ptx::Descriptor(one_hot, 16 * kHopperLineBytes);
    }
  }

  // dx lies feature-major: rows are contiguous.
  __device__ __forceinline__ void Store(const float (&sums)[kBlocks][kBlockSums],
                                        const HopperCoordinates& at) {
    const int32_t row = at.n_tile * Tile::kBlockRows + consumer_ * 64;
#pragma unroll
    for (int32_t round = 0; round < kRounds; ++round) {
      float in_round[kRoundSums];
#pragma unroll
      for (int32_t i = 0; i < kRoundSums; ++i) {
        const int32_t j = round * kRoundSums + i;
        in_round[i] = sums[j / kBlockSums][j % kBlockSums];
      }
      typename Staging::Rounded rounded;
      Staging::Round(in_round, rounded);
      const uint32_t staging = shared_.Staging(consumer_, round % 2);
      if (IsLeader()) ptx::WaitStoresRead<1>();
      Sync();
      Staging::RowMajor(staging, rounded, /*round=*/0, warp_, lane_);
      ptx::FenceProxyAsync();
      Sync();
      if (IsLeader()) {
        const int32_t feature = at.col_tile * Tile::kBlockFeatures + round * Staging::kLine;
#pragma unroll
        for (int32_t slab = 0; slab < Staging::kRowMajorSlabs; ++slab) {
          ptx::StoreBox(&maps_.result, staging + slab * Staging::kLine * kHopperLineBytes,
                        row + slab * Staging::kLine, feature, at.batch);
        }
        ptx::CommitStores();
      }
    }
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
  RingPosition<Tile::kStages> ring_;
  RingPosition<Tile::kOneHots> one_hots_;
};

}  // namespace jax_nm
