// A warpgroup that multiplies what lies in the ring, in TF32, and stores its part of the tile.
#pragma once

#include "activation.cuh"
#include "hopper_maps.h"
#include "hopper_ring.cuh"
#include "hopper_walk.cuh"
#include "ptx.cuh"
#include "tf32.cuh"
#include "tf32_config.h"

namespace jax_nm {

// A warp has 32 rows, which are two times 16 of the M side: the lanes 4 g to 4 g + 3 have four
// neighbouring rows, the lines g and g + 8 of the first product and those of the second. So a lane
// reads x by 16 bytes, and holds 16 bytes of a column of the result.
template <class Tile>
class Tf32Consumer {
 public:
  __device__ __forceinline__ Tf32Consumer(const Tf32Args& args, const HopperMaps& maps,
                                          const HopperShared<Tile>& shared, int32_t consumer)
      : args_(args.hopper),
        out_(args),
        maps_(maps),
        shared_(shared),
        consumer_(consumer),
        warp_(threadIdx.x / 32 % kWarpgroupWarps),
        lane_(threadIdx.x % 32),
        rank_(blockIdx.x - args_.by_cluster.Quotient(blockIdx.x) * args_.cluster) {
    // Lanes of a quarter of the warp read four lines, of each the chunks `q` and `q + 4`: eight
    // different places after the permutation by the line's number.
    const int32_t slot = lane_ % 4;
    const int32_t slab = Tile::kSplitsRows ? consumer_ * 4 + warp_ : warp_;
    const int32_t line = consumer_ * (Tile::kSplitsRows ? 0 : Tile::kLines - kLines);
    x_lane_ = slab * Tile::kXSlabBytes + (line + slot) * kHopperLineBytes + (Chunk() ^ slot) * 16;
  }

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_, blockIdx.x, gridDim.x);
    const int32_t count = walk.Count();
    for (int32_t i = 0; i < count; ++i) {
      const HopperWork work = walk.Work(i);
      const int32_t steps = work.last_step - work.first_step;
      float sums[kTiles][kTileSums];
      uint32_t x[kTf32Units][8];
      ptx::BarrierWait(shared_.Full(ring_.stage), ring_.parity);
      TestDelay();
#pragma unroll
      for (int32_t unit = 0; unit < kAhead; ++unit) Load(x[unit], ring_.stage, unit);
      for (int32_t step = 0; step < steps; ++step) Step(sums, x, step > 0, step + 1 < steps);
      const HopperCoordinates at = args_.raster.Locate(work.tile);
      ptx::WgmmaWait<0>();
#pragma unroll
      for (int32_t unit = 0; unit < kTf32Units; ++unit) ptx::PinRegisters(x[unit]);
#pragma unroll
      for (int32_t tile = 0; tile < kTiles; ++tile) ptx::PinRegisters(sums[tile]);
      if constexpr (!kFreesEarly) Release(ring_.Before(1));
      if (work.shared) AddSums(sums);
      if (args_.bias != nullptr) AddBias(sums, at);
      if (args_.emits_sum) Store(sums, out_.sum, &maps_.sum, at, work.shared);
#pragma unroll
      for (int32_t tile = 0; tile < kTiles; ++tile) ActivateAll(args_.activation, sums[tile]);
      Store(sums, out_.result, &maps_.result, at, work.shared);
      if (work.shared) ReturnRing();
    }
    if (lane_ == 0) ptx::WaitStores();
  }

 private:
  static constexpr int32_t kGroups = Tile::kConsumerGroups;
  static constexpr int32_t kTiles = 2 * kGroups;  // of a warp: a group's first and second 16 rows
  static constexpr int32_t kTileSums = Tile::kWgmmaN / 2;  // of a thread
  static constexpr int32_t kSums = kTiles * kTileSums;
  static constexpr int32_t kGroupUnits = kTf32Units / kGroups;
  static constexpr int32_t kLines = Tile::kConsumerLines;
  static constexpr int32_t kBlocks = Tile::kConsumerCols / 8;  // of columns
  static constexpr int32_t kRounds = Tile::kConsumerCols / 32;
  // How many units of x are in registers before their products are asked for. Those of one unit are
  // under way meanwhile.
  static constexpr int32_t kAhead = kTf32Units - 1;

  // Of the warp's rows that lie in 16 bytes.
  __device__ __forceinline__ int32_t Chunk() const {
    const int32_t line = lane_ / 4;
    return line / 2 + line % 2 * 4;
  }

  // The slots lane % 4 and lane % 4 + 4 of a unit, of each four rows.
  __device__ __forceinline__ void Load(uint32_t (&x)[8], int32_t stage, int32_t unit) const {
    const uint32_t from = shared_.X(stage) + x_lane_;
    const uint32_t of_unit = unit * kTf32UnitLines * kHopperLineBytes;
    const uint4 first = ptx::LoadShared16(from + of_unit);
    // Four lines on, the permutation differs by one bit.
    const uint4 second = ptx::LoadShared16((from ^ 64) + of_unit + 4 * kHopperLineBytes);
    x[0] = first.x, x[1] = first.y, x[2] = first.z, x[3] = first.w;
    x[4] = second.x, x[5] = second.y, x[6] = second.z, x[7] = second.w;
  }

  __device__ __forceinline__ void Step(float (&sums)[kTiles][kTileSums],
                                       uint32_t (&x)[kTf32Units][8], bool accumulate, bool more) {
    if constexpr (kFreesEarly) Release(ring_.stage);
    const uint32_t values = shared_.Second(ring_.stage) + ValuesOffset();
    const int32_t last_stage = ring_.Before(1);
    RingPosition<Tile::kStages> next = ring_;
    next.Advance();
#pragma unroll
    for (int32_t unit = 0; unit < kTf32Units; ++unit) {
      Multiply(sums, x[unit], values, unit, accumulate);
      ptx::WgmmaWait<1>();
      constexpr int32_t kBefore = kTf32Units - 1;
      ptx::PinRegisters(x[(unit + kBefore) % kTf32Units]);
      if (unit == 0 && accumulate && !kFreesEarly) Release(last_stage);
      if (unit == kTf32Units - kAhead && more) {
        ptx::BarrierWait(shared_.Full(next.stage), next.parity);
        TestDelay();
      }
      // Behind the last step, what is read here is not used.
      const int32_t ahead = unit + kAhead;
      Load(x[ahead % kTf32Units], ahead < kTf32Units ? ring_.stage : next.stage,
           ahead % kTf32Units);
    }
    ring_ = next;
  }

  __device__ __forceinline__ void Multiply(float (&sums)[kTiles][kTileSums], uint32_t (&x)[8],
                                           uint32_t values, int32_t unit, bool accumulate) const {
    const int32_t group = unit / kGroupUnits, k = unit % kGroupUnits;
    uint32_t first[4] = {x[0], x[1], x[4], x[5]};
    uint32_t second[4] = {x[2], x[3], x[6], x[7]};
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
      first[i] = RoundToTf32(first[i]);
      second[i] = RoundToTf32(second[i]);
    }
    const uint32_t at = values + group * (Tile::kWgmmaN * Tile::kValuesLineBytes) +
                        k * (kTf32UnitLines * Tile::kElementBytes);
    const uint64_t b =
        Tile::kValuesLineBytes == 128 ? ptx::Descriptor(at, 0) : ptx::DescriptorOfHalfLines(at, 0);
    constexpr ptx::OperandTag<float, ptx::KMajor> kOperands;
    ptx::WgmmaFence();
    ptx::WgmmaRegisters(kOperands, sums[group * 2], first, b, accumulate || k > 0);
    ptx::WgmmaRegisters(kOperands, sums[group * 2 + 1], second, b, accumulate || k > 0);
    ptx::WgmmaCommit();
    x[0] = first[0], x[1] = first[1], x[4] = first[2], x[5] = first[3];
    x[2] = second[0], x[3] = second[1], x[6] = second[2], x[7] = second[3];
  }

  __device__ __forceinline__ uint32_t ValuesOffset() const {
    return Tile::kSplitsRows ? 0 : consumer_ * Tile::kSlabBytes;
  }

  // The stage may be filled again.
  __device__ __forceinline__ void Release(int32_t stage) const {
    TestDelay();
    if (lane_ == 0) ptx::BarrierArrive(shared_.Empty(stage));
  }

  // ---- The tile, as a thread holds it: four rows of the columns 8 j + 2 (lane % 4) + i ----

  // Of the first (0, 1) or the second (2, 3) 16 rows, and of those the lower or the upper half.
  static __device__ __forceinline__ float& Sum(float (&sums)[kTiles][kTileSums], int32_t j,
                                               int32_t i, int32_t row) {
    constexpr int32_t kGroupBlocks = kBlocks / kGroups;
    return sums[j / kGroupBlocks * 2 + row / 2][j % kGroupBlocks * 4 + row % 2 * 2 + i];
  }

  __device__ __forceinline__ int32_t FirstRow(const HopperCoordinates& at) const {
    return at.n_tile * Tile::kBlockN + (Tile::kSplitsRows ? consumer_ * 128 : 0) +
           warp_ * kTf32WarpRows;
  }
  __device__ __forceinline__ int32_t FirstCol(const HopperCoordinates& at) const {
    return at.col_tile * Tile::kBlockCols + (Tile::kSplitsRows ? 0 : consumer_ * 64);
  }

  // ---- Tiles that the blocks of a cluster share ----

  // Whether this block completes these 32 columns of every consumer.
  __device__ __forceinline__ bool Completes(int32_t round) const {
    return round * args_.cluster / kRounds == rank_;
  }

  // As HopperConsumer's.
  __device__ __forceinline__ void AddSums(float (&sums)[kTiles][kTileSums]) const {
    constexpr uint32_t kPitch = kWarpgroupThreads * sizeof(float4);
    ptx::NamedBarrierSync(1 + kHopperConsumers, kHopperConsumers * kWarpgroupThreads);
    const uint32_t own = shared_.Sums(consumer_) + threadIdx.x % kWarpgroupThreads * sizeof(float4);
#pragma unroll
    for (int32_t j = 0; j < kBlocks; ++j) {
      if (Completes(j / 4)) continue;
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        ptx::StoreShared(own + (j * 2 + i) * kPitch,
                         make_float4(Sum(sums, j, i, 0), Sum(sums, j, i, 1), Sum(sums, j, i, 2),
                                     Sum(sums, j, i, 3)));
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
        const uint32_t from = ptx::PeerAddress(own, rank) + round * 8 * kPitch;
        float4 parts[8];
#pragma unroll
        for (int32_t part = 0; part < 8; ++part) parts[part] = ptx::LoadPeer(from + part * kPitch);
#pragma unroll
        for (int32_t part = 0; part < 8; ++part) {
          const int32_t j = round * 4 + part / 2, i = part % 2;
          Sum(sums, j, i, 0) += parts[part].x;
          Sum(sums, j, i, 1) += parts[part].y;
          Sum(sums, j, i, 2) += parts[part].z;
          Sum(sums, j, i, 3) += parts[part].w;
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

  __device__ __forceinline__ void AddBias(float (&sums)[kTiles][kTileSums],
                                          const HopperCoordinates& at) const {
    const float* bias = args_.bias + int64_t{at.batch} * args_.cols;
    const int32_t first_col = FirstCol(at) + lane_ % 4 * 2;
#pragma unroll
    for (int32_t j = 0; j < kBlocks; ++j) {
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        const int32_t col = first_col + j * 8 + i;
        const float of_col = col < args_.cols ? __ldg(bias + col) : 0.0f;
#pragma unroll
        for (int32_t row = 0; row < 4; ++row) Sum(sums, j, i, row) += of_col;
      }
    }
  }

  // All columns, or those of a shared tile that this block completes.
  __device__ __forceinline__ void Store(float (&sums)[kTiles][kTileSums], float* to,
                                        const CUtensorMap* map, const HopperCoordinates& at,
                                        bool shared) const {
    if (args_.result_feature_major) {
      StoreFeatureMajor(sums, to, at, shared);
    } else {
      StoreRowMajor(sums, map, at, shared);
    }
  }

  // A warp writes all of its 32 rows, 128 bytes, of four columns at once.
  __device__ __forceinline__ void StoreFeatureMajor(float (&sums)[kTiles][kTileSums], float* to,
                                                    const HopperCoordinates& at,
                                                    bool shared) const {
    const int32_t row = FirstRow(at) + Chunk() * 4;
    const int32_t col = FirstCol(at) + lane_ % 4 * 2;
    const int32_t cols_left = row < args_.rows ? args_.cols - col : 0;
    float* const first = to + (int64_t{at.batch} * args_.cols + col) * args_.rows + row;
#pragma unroll
    for (int32_t j = 0; j < kBlocks; ++j) {
      if (shared && !Completes(j / 4)) continue;
#pragma unroll
      for (int32_t i = 0; i < 2; ++i) {
        if (j * 8 + i < cols_left) {
          ptx::StoreGlobal16(first + int64_t{j * 8 + i} * args_.rows,
                             make_float4(Sum(sums, j, i, 0), Sum(sums, j, i, 1), Sum(sums, j, i, 2),
                                         Sum(sums, j, i, 3)));
        }
      }
    }
  }

  // By way of shared memory, 32 rows and 32 columns of a warp at a time.
  __device__ __forceinline__ void StoreRowMajor(float (&sums)[kTiles][kTileSums],
                                                const CUtensorMap* map, const HopperCoordinates& at,
                                                bool shared) const {
    constexpr int32_t kBytes = kTf32WarpRows * kHopperLineBytes;
    static_assert(kWarpgroupWarps * kBytes == 2 * kHopperStagingBytes,
                  "a consumer's warps share its staging buffers");
    const uint32_t staging = shared_.Staging(consumer_, 0) + warp_ * kBytes;
#pragma unroll
    for (int32_t round = 0; round < kRounds; ++round) {
      if (shared && !Completes(round)) continue;
      if (lane_ == 0) ptx::WaitStoresRead<0>();
      __syncwarp();
#pragma unroll
      for (int32_t row = 0; row < 4; ++row) {
        const int32_t line = Chunk() * 4 + row;
        const uint32_t to = staging + line * kHopperLineBytes + lane_ % 2 * 8;
#pragma unroll
        for (int32_t j = 0; j < 4; ++j) {
          const int32_t chunk = j * 2 + lane_ % 4 / 2;
          ptx::StoreShared(to + (chunk ^ line % 8) * 16, Sum(sums, round * 4 + j, 0, row),
                           Sum(sums, round * 4 + j, 1, row));
        }
      }
      ptx::FenceProxyAsync();
      __syncwarp();
      if (lane_ == 0) {
        ptx::StoreBox(map, staging, FirstCol(at) + round * 32, FirstRow(at), at.batch);
        ptx::CommitStores();
      }
    }
  }

  const HopperArgs& args_;
  const Tf32Args& out_;
  const HopperMaps& maps_;
  const HopperShared<Tile> shared_;
  const int32_t consumer_;
  const int32_t warp_;
  const int32_t lane_;
  const int32_t rank_;  // of the block in its cluster
  uint32_t x_lane_;     // where a lane reads x of a stage
  RingPosition<Tile::kStages> ring_;
};

}  // namespace jax_nm
