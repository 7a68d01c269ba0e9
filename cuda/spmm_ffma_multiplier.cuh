// The warps of spmm on CUDA cores that multiply, each 128 rows by 32 columns of one group.
#pragma once

#include "ptx_barrier.cuh"
#include "spmm_mma_stages.cuh"
#include "spmm_sums.cuh"
#include "test_delay.cuh"

namespace jax_nm {

template <class Tile_, Staging kStaging_, int kCopyThreads_>
struct SpmmFfmaTraits {
  using T = float;
  using Tile = Tile_;
  using Lines = PlainLines;
  static constexpr Staging kStaging = kStaging_;
  static constexpr int kSlotUnit = kSlotUnroll;
  static constexpr int kCopyThreads = kCopyThreads_;
  static_assert(Tile::kWarpCols == kFfmaGroupCols, "All lanes of a warp read the same line of x");
};

template <class Traits>
struct SpmmFfmaMultiplier : SpmmMmaStages<Traits>,
                            SpmmSums<typename Traits::T, typename Traits::Tile> {
  using Base = SpmmMmaStages<Traits>;
  using Sums = SpmmSums<typename Traits::T, typename Traits::Tile>;
  using Base::args;
  using Base::kElement;
  using Base::kRowStride;
  using Base::kSlotUnit;
  using Base::kValueStride;
  using Base::kWindow;
  using Base::steps;
  using Base::table_slots;
  using Sums::kCols;
  using typename Base::TableEntry;
  using typename Base::Tile;
  static constexpr int kChunks = Sums::kChunks;
  static constexpr int kChunkBytes = Sums::kChunkStride * kElement;  // between two of a thread
  static constexpr int kHalves = kCols / 4;
  static_assert(kSlotUnit == 4, "Four entries of a window's table are read at once");

  __device__ __forceinline__ SpmmFfmaMultiplier(const KernelArgs& a, const void* shared)
      : Base(a, shared), Sums(a) {}

  __device__ __forceinline__ void Run() {
    const bool arrives = threadIdx.x % 32 == 0;
    const int32_t group = this->GroupOf(this->thread_col);
    MmaTurn turn;
    for (int32_t step = steps.first; step < steps.last; ++step) {
      TestDelay();
      ptx::BarrierWait(this->Full(turn.stage), turn.round % 2);
      if (kFreesEarly && arrives) ptx::BarrierArrive(this->Empty(turn.stage));
      Multiply(step, turn, group);
      // What the sums used has arrived. What was read ahead for nothing may change meanwhile.
      __syncwarp();
      if (!kFreesEarly && arrives) ptx::BarrierArrive(this->Empty(turn.stage));
      turn.Advance(args.config.stages);
    }
  }

  // Where four slots' rows of x lie, in bytes from `lines`.
  struct Offsets {
    uint32_t packed[2];
    __device__ __forceinline__ uint32_t operator[](int u) const {
      return u % 2 == 0 ? (packed[u / 2] & 0xffffu) << 4 : packed[u / 2] >> 16 << 4;
    }
  };

  // A slot is multiplied half by half of the thread's columns, and in each by four rows at a time.
  // Registers whose last use that was take the next slot's operands at once, which are used 48
  // multiplications later: with no second set of them, three warps fit into the registers of a
  // scheduler.
  __device__ __forceinline__ void Multiply(int32_t step, const MmaTurn& turn, int32_t group) {
    const int32_t slots = this->StepSlots(step);
    const uint32_t stage = this->Stage(turn.stage);
    const uint32_t entries =
        this->Table(turn.table) + group * table_slots * static_cast<uint32_t>(sizeof(TableEntry));
    const uint32_t lines =
        stage + this->thread_row * kElement + (kWindow ? 0 : group * table_slots * kRowStride);
    uint32_t line = lines;
    uint32_t values = stage + args.layout.second_offset + this->thread_col * kElement;
    float row[kChunks][4], weight[kHalves][4];
    Offsets offsets = ReadOffsets(entries);
    const uint32_t first = kWindow ? lines + offsets[0] : lines;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) LoadFour(first + c * kChunkBytes, row[c]);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) LoadFour(values + h * 16, weight[h]);
    const uint32_t end = values + slots * kValueStride;
    uint32_t entry = entries;
#pragma unroll 1
    do {
#pragma unroll
      for (int u = 0; u < kSlotUnit; ++u) {
        const bool last = u + 1 == kSlotUnit;
        // Behind the last slot of a step it reads what it does not use: the last entries again, and
        // values that are followed by something, too.
        if (last && kWindow) {
          if (values + kSlotUnit * kValueStride != end) entry += kSlotUnit * sizeof(TableEntry);
          offsets = ReadOffsets(entry);
        }
        const uint32_t next =
            kWindow ? lines + offsets[(u + 1) % kSlotUnit] : line + (u + 1) * kRowStride;
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
#pragma unroll
          for (int c = 0; c < kChunks; ++c) {
            MultiplyFour(c, h, row[c], weight[h]);
            if (h + 1 == kHalves) LoadFour(next + c * kChunkBytes, row[c]);
          }
          LoadFour(values + (u + 1) * kValueStride + h * 16, weight[h]);
        }
      }
      values += kSlotUnit * kValueStride;
      line += kSlotUnit * kRowStride;
    } while (values != end);
  }

  __device__ __forceinline__ void MultiplyFour(int chunk, int half, const float (&row)[4],
                                               const float (&weight)[4]) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) this->sums[chunk * 4 + i][half * 4 + t] += row[i] * weight[t];
    }
  }

  __device__ __forceinline__ static Offsets ReadOffsets(uint32_t entry) {
    Offsets offsets{};
    if constexpr (kWindow) {
      int32_t words[2];
      ptx::LoadShared(entry, words);
      offsets.packed[0] = words[0];
      offsets.packed[1] = words[1];
    }
    return offsets;
  }

  __device__ __forceinline__ static void LoadFour(uint32_t address, float (&out)[4]) {
    const uint4 words = ptx::LoadShared16(address);
    out[0] = __uint_as_float(words.x);
    out[1] = __uint_as_float(words.y);
    out[2] = __uint_as_float(words.z);
    out[3] = __uint_as_float(words.w);
  }
};

}  // namespace jax_nm
