// A warp of the kernel for short vectors that multiplies: 128 rows by 32 columns.
//
// A lane reads, of each of the four slots that it holds of an operand, 8 rows at once, and pairs
// the slots: rows 2 v and 2 v + 1 of them are its two rows of the product number v. A quarter of
// the warp reads four lines of x, half of each 32 bytes.
#pragma once

#include <type_traits>

#include "activation.cuh"
#include "hopper_staging.cuh"
#include "hopper_walk.cuh"
#include "ptx_mma.cuh"
#include "short_stages.cuh"
#include "tile_io.cuh"

namespace jax_nm {

template <class T, class Out, int kGroupCols>
class ShortMultiplier {
 public:
  __device__ __forceinline__ ShortMultiplier(const ShortArgs& args, const ShortStages& stages,
                                             int32_t warp)
      : args_(args), stages_(stages), lane_(threadIdx.x % 32), warp_(warp) {
    const uint32_t line = lane_ % 16, byte = warp % 2 * 64 + lane_ / 16 * 16;
    values_ = args.layout.values_offset + warp / 2 * args.layout.values_slab_bytes +
              line * kHopperLineBytes + (byte ^ line % 8 * 16);
    table_ = args.layout.table_offset + (warp * kGroups * 4 + lane_ % 4) * 4;
  }

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_.hopper, blockIdx.x, gridDim.x);
    const int32_t count = walk.Count();
    if (count == 0) return;
    left_ = int64_t{count} * args_.hopper.steps;
    Operands operands;
    ptx::BarrierWait(stages_.Full(stages_.stage), stages_.parity);
    uint32_t base = stages_.Base();
    LoadOperands(base, 0, operands);
    LoadUnit(base, operands.lines[0], 0, ring_[0]);
    for (int32_t i = 0; i < count; ++i) {
      const HopperWork work = walk.Work(i);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) sums_[r][t][e] = 0.0f;
        }
      }
      for (int32_t step = work.first_step; step < work.last_step; ++step) Step(base, operands);
      Store(args_.hopper.raster.Locate(work.tile));
    }
  }

 private:
  static constexpr int kGroups = kShortWarpCols / kGroupCols;
  static constexpr int kGroupTiles = kGroupCols / 8;
  static constexpr int kColTiles = kShortWarpCols / 8;
  static constexpr int kRowTiles = kShortRows / 16;
  static constexpr int kRowSlabs = ShortTile::kRowSlabs;
  static constexpr int kSlabTiles = kRowTiles / kRowSlabs;
  static constexpr int kUnits = kGroups * kRowSlabs;  // reads of x for 16 slots
  static_assert(kUnits % 2 == 0, "a unit has the same place in the ring for all slots");

  using Unit = uint4[4];  // 8 rows of each slot that the lane holds
  // Of 16 slots: the lines that they pick, four to a word, and the values.
  struct Operands {
    uint32_t lines[kGroups];
    uint32_t values[kColTiles][2];
  };

  __device__ __forceinline__ void LoadOperands(uint32_t base, int32_t slot, Operands& out) const {
    constexpr int32_t kTableRows = kShortCols / kGroupCols;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      out.lines[g] = ptx::LoadShared4(base + table_ + slot * kTableRows + g * 16);
    }
    const uint32_t address = base + values_ + slot * kHopperLineBytes;
#pragma unroll
    for (int t = 0; t < kColTiles; t += 2) {
      uint32_t words[4];
      ptx::LoadMatricesTransposed(words, address ^ t * 16);
      out.values[t][0] = words[0];
      out.values[t][1] = words[1];
      out.values[t + 1][0] = words[2];
      out.values[t + 1][1] = words[3];
    }
  }

  __device__ __forceinline__ void LoadUnit(uint32_t base, uint32_t lines, int32_t slab,
                                           Unit& out) const {
    const uint32_t from = base + slab * args_.layout.x_slab_bytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t line = lines >> 8 * i & 0xff;
      const uint32_t byte = (lane_ / 4 ^ line % 8) * 16;
      out[i] = ptx::LoadShared16(from + line * kHopperLineBytes + byte);
    }
  }

  __device__ __forceinline__ static uint32_t Word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }

  // Product `v` of a unit with the columns of its group.
  __device__ __forceinline__ void Multiply(int unit, int v, const Unit& x, const Operands& o) {
    const int group = unit / kRowSlabs, slab = unit % kRowSlabs;
    const uint32_t first = Word(x[0], v), second = Word(x[1], v);
    const uint32_t third = Word(x[2], v), fourth = Word(x[3], v);
    const uint32_t a[4] = {__byte_perm(first, second, 0x5410), __byte_perm(first, second, 0x7632),
                           __byte_perm(third, fourth, 0x5410), __byte_perm(third, fourth, 0x7632)};
#pragma unroll
    for (int t = group * kGroupTiles; t < (group + 1) * kGroupTiles; ++t) {
      ptx::Mma16816<T>(sums_[slab * kSlabTiles + v][t], a, o.values[t]);
    }
  }

  // One stage, of which the first operands are there. Leaves those of the next one, and where it
  // lies; behind the very last stage it reads that again, which nobody fills any more.
  __device__ __forceinline__ void Step(uint32_t& base, Operands& operands) {
    const int32_t stage = stages_.stage;
    if constexpr (kFreesEarly) Release(stage, 0);
    for (int32_t slot = 0; slot < args_.slots; slot += kShortDepth) {
      const bool last = slot + kShortDepth == args_.slots;
      uint32_t next_base = base;
      if (last) {
        stages_.Advance();
        if (--left_ > 0) {
          TestDelay();
          ptx::BarrierWait(stages_.Full(stages_.stage), stages_.parity);
          next_base = stages_.Base();
        }
      }
      Operands next;
      LoadOperands(next_base, last ? 0 : slot + kShortDepth, next);
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const Unit& x = ring_[unit % 2];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          Multiply(unit, v, x, operands);
          if (v > 0) continue;
          // Behind the first products of a unit, so that they hide the latency of these reads.
          const int ahead = (unit + 1) % kUnits;
          LoadUnit(ahead > 0 ? base : next_base,
                   ahead > 0 ? operands.lines[ahead / kRowSlabs] : next.lines[0], ahead % kRowSlabs,
                   ring_[(unit + 1) % 2]);
        }
      }
      if (last && !kFreesEarly) {
        // What was read last of the stage has arrived when the address is known.
        const Unit& x = ring_[(kUnits - 1) % 2];
        Release(stage, x[0].x | x[1].x | x[2].x | x[3].x);
      }
      operands = next;
      base = next_base;
    }
  }

  // The address waits for a word that was read, by a zero that only the run of the kernel knows.
  __device__ __forceinline__ void Release(int32_t stage, uint32_t last_read) const {
    const uint32_t zero = static_cast<uint32_t>(args_.hopper.rows) >> 31;
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(stages_.Empty(stage) + (last_read & zero));
  }

  // ---- The result, from registers: 8 rows of a column where those are contiguous, otherwise 8
  // columns of a row, for which four lanes exchange theirs, or pairs of them in float32. ----

  __device__ __forceinline__ void Store(const HopperCoordinates& at) {
    const HopperArgs& a = args_.hopper;
    const int32_t row0 = at.n_tile * kShortRows + lane_ / 4 * 8;
    const int32_t col0 = at.col_tile * kShortCols + warp_ * kShortWarpCols;
    if (a.bias != nullptr) AddBias(a.bias + int64_t{at.batch} * a.cols, col0);
    const int64_t first = int64_t{at.batch} * a.rows * a.cols;
    if (a.emits_sum) StoreTo(static_cast<Out*>(args_.sum) + first, row0, col0);
    ActivateAll(a.activation, reinterpret_cast<float (&)[kRowTiles * kColTiles * 4]>(sums_));
    StoreTo(static_cast<Out*>(args_.result) + first, row0, col0);
  }

  __device__ __forceinline__ void AddBias(const float* bias, int32_t col0) {
#pragma unroll
    for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int32_t col = col0 + t * 8 + lane_ % 4 * 2 + e;
        const float of = col < args_.hopper.cols ? __ldg(bias + col) : 0.0f;
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          sums_[r][t][e] += of;
          sums_[r][t][2 + e] += of;
        }
      }
    }
  }

  __device__ __forceinline__ void StoreTo(Out* y, int32_t row0, int32_t col0) const {
    if (args_.hopper.result_feature_major) {
      StoreFeatureMajor(y, row0, col0);
    } else {
      StoreRowMajor(y, row0, col0);
    }
  }

  __device__ __forceinline__ void StoreFeatureMajor(Out* y, int32_t row0, int32_t col0) const {
    const int32_t rows = args_.hopper.rows;
#pragma unroll
    for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int32_t col = col0 + t * 8 + lane_ % 4 * 2 + e;
#pragma unroll
        for (int slab = 0; slab < kRowSlabs; ++slab) {
          float vector[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            vector[i] = sums_[slab * kSlabTiles + i / 2][t][i % 2 * 2 + e];
          }
          const int32_t row = row0 + slab * kHopperLineElements;
          if (row < rows && col < args_.hopper.cols) {
            StoreVector(y + int64_t{col} * rows + row, vector, 8, true);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void StoreRowMajor(Out* y, int32_t row0, int32_t col0) const {
    const int32_t cols = args_.hopper.cols, quad = lane_ % 4;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int32_t row = row0 + r / kSlabTiles * kHopperLineElements + r % kSlabTiles * 2 + half;
        const bool valid = row < args_.hopper.rows;
        Out* line = y + int64_t{row} * cols;
        if constexpr (std::is_same_v<Out, float>) {
#pragma unroll
          for (int t = 0; t < kColTiles; ++t) {
            const int32_t col = col0 + t * 8 + quad * 2;
            if (valid && col < cols) {
              *reinterpret_cast<float2*>(line + col) =
                  make_float2(sums_[r][t][half * 2], sums_[r][t][half * 2 + 1]);
            }
          }
        } else {
          uint32_t pairs[kColTiles];
#pragma unroll
          for (int t = 0; t < kColTiles; ++t) {
            pairs[t] = RoundPair<Out>(sums_[r][t][half * 2], sums_[r][t][half * 2 + 1]);
          }
          Transpose(pairs);
          const int32_t col = col0 + quad * 8;
          if (valid && col < cols) {
            *reinterpret_cast<uint4*>(line + col) =
                make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
          }
        }
      }
    }
  }

  // Lane i of four lanes gets word i of each.
  __device__ __forceinline__ void Transpose(uint32_t (&words)[4]) const {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
      const bool up = (lane_ & bit) != 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i & bit) != 0) continue;
        const uint32_t got = __shfl_xor_sync(0xffffffffu, up ? words[i] : words[i | bit], bit);
        if (up) {
          words[i] = got;
        } else {
          words[i | bit] = got;
        }
      }
    }
  }

  const ShortArgs& args_;
  ShortStages stages_;
  const int32_t lane_;
  const int32_t warp_;
  uint32_t values_;  // from the start of a stage to what the lane reads
  uint32_t table_;
  int64_t left_ = 0;  // stages that are not yet multiplied
  Unit ring_[2];
  float sums_[kRowTiles][kColTiles][4];
};

}  // namespace jax_nm
