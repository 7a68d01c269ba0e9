// The warps of spmm on tensor cores of a warp, or on CUDA cores, that copy: they decode the indices
// of each step, and copy x and the values to its stage, in whole, aligned 16-byte units. What does
// not change from step to step is computed once, and copies that lie wholly inside the matrix check
// nothing.
#pragma once

#include "ptx_barrier.cuh"
#include "spmm_mma_stages.cuh"
#include "test_delay.cuh"

namespace jax_nm {

template <class Traits>
struct SpmmMmaCopier : SpmmMmaStages<Traits> {
  using Base = SpmmMmaStages<Traits>;
  using Base::args;
  using Base::col0;
  using Base::first_group;
  using Base::kElement;
  using Base::kRowStride;
  using Base::kSlotUnit;
  using Base::kValueStride;
  using Base::kWindow;
  using Base::row0;
  using Base::steps;
  using Base::table_slots;
  using Base::tile;
  using typename Base::Lines;
  using typename Base::T;
  using typename Base::TableEntry;
  using typename Base::Tile;

  static constexpr int kThreads = Traits::kCopyThreads;
  // A thread copies one unit of every kPass-th line.
  static constexpr int kXPass = kThreads * 16 / kRowStride;
  static constexpr int kValuePass = kThreads * 16 / kValueStride;
  static constexpr int kXCopies = kSlotUnit / kXPass;  // of kSlotUnit lines
  static constexpr int kBatch = 4;                     // copies between two comparisons
  static_assert(kXPass % Lines::kPeriod == 0 && kValuePass % Lines::kPeriod == 0,
                "A thread copies lines that are swizzled alike");
  static_assert(kSlotUnit % kXPass == 0 && kSlotUnit % kValuePass == 0,
                "All threads copy the same number of lines of kSlotUnit");

  // A thread's share of the copies: its first line, that line's place in a stage, and its rows of x
  // or columns of the values, of which there are none beyond the matrix.
  struct Copies {
    int32_t line;
    uint32_t place;
    const unsigned char* source;
    int32_t bytes;
  };
  // An entry of the table that a thread decodes in every step. Two, enough for groups of 32 columns
  // in steps of 64 slots, are remembered; `slot` is beyond all slots if there is none.
  struct Entry {
    const uint8_t* index;  // of step 0
    int32_t slot;          // of the step
    int32_t line;          // windows: the first line of the slot's window
    uint32_t place;        // in the table
  };
  static constexpr int kEntries = 2;
  static constexpr int kCopyBarrier = 1;  // 0 is the whole block's
  static constexpr int32_t kNoSlot = 1 << 30;

  const int32_t thread;  // among those that copy
  const uint8_t* indices;
  Copies x, values;
  Entry entries[kEntries];
  uint8_t fetched[kEntries];

  __device__ __forceinline__ SpmmMmaCopier(const KernelArgs& a, const void* shared)
      : Base(a, shared), thread(threadIdx.x - Tile::kThreads) {
    indices = a.indices + tile.batch * a.groups * a.kept;
    x = MakeCopies<kRowStride>(static_cast<const T*>(a.first) + tile.batch * a.rows * a.depth, row0,
                               a.rows);
    values = MakeCopies<kValueStride>(
        static_cast<const T*>(a.second) + tile.batch * a.kept * a.values_cols, col0, a.values_cols);
#pragma unroll
    for (int q = 0; q < kEntries; ++q) entries[q] = MakeEntry(thread + q * kThreads);
  }

  // Indices are read two steps ahead of their copies and decoded one step ahead.
  __device__ __forceinline__ void Run() {
    ClearZeroLines();
    Fetch(steps.first);
    Decode(steps.first, 0);
    if (steps.first + 1 < steps.last) Fetch(steps.first + 1);
    MmaTurn turn;
    for (int32_t step = steps.first; step < steps.last; ++step) {
      // Threads copy what others have decoded.
      if (!kWindow) ptx::NamedBarrierSync(kCopyBarrier, kThreads);
      if (turn.round > 0) ptx::BarrierWait(this->Empty(turn.stage), (turn.round - 1) % 2);
      TestDelay();
      Issue(step, turn.stage, turn.table);
      TestDelay();
      ptx::BarrierArriveAfterCopies(this->Full(turn.stage));
      ptx::BarrierArrive(this->Full(turn.stage));
      turn.Advance(args.config.stages);
      // The table was that of a step whose stage has been handed back since.
      if (step + 1 < steps.last) Decode(step + 1, turn.table);
      if (step + 2 < steps.last) Fetch(step + 2);
    }
  }

  template <int kStride>
  __device__ __forceinline__ Copies MakeCopies(const T* matrix, int32_t first,
                                               int32_t length) const {
    constexpr int kUnits = kStride / 16, kUnit = 16 / kElement;
    const int32_t line = thread / kUnits, unit = thread % kUnits;
    const int32_t element = first + unit * kUnit;
    return {line, static_cast<uint32_t>(Lines::Offset(line, unit * 16, kStride)),
            reinterpret_cast<const unsigned char*>(matrix + element), element < length ? 16 : 0};
  }

  // ---- The table of a step. ----

  // Number i of the table's entries, group by group.
  __device__ __forceinline__ Entry MakeEntry(int32_t i) const {
    const int32_t group = args.by_table_slots.Quotient(i), slot = i - group * table_slots;
    const bool there =
        i < EntryCount() && first_group + group < args.groups && slot < args.config.block_kept;
    // What a thread copies of kSlotUnit gathered lines lies together.
    const int32_t within = slot % kSlotUnit;
    const int32_t place = kWindow ? i : i - within + within % kXPass * kXCopies + within / kXPass;
    return {indices + int64_t{first_group + group} * args.kept + slot, there ? slot : kNoSlot,
            args.by_n.Quotient(slot) * args.m, static_cast<uint32_t>(place * sizeof(TableEntry))};
  }

  __device__ __forceinline__ int32_t EntryCount() const {
    return args.config.groups_in_tile * table_slots;
  }

  __device__ __forceinline__ bool IsValid(const Entry& entry, int32_t first_slot) const {
    return entry.slot < args.valid_kept - first_slot;
  }

  __device__ __forceinline__ void Fetch(int32_t step) {
    const int32_t first_slot = step * args.config.block_kept;
#pragma unroll
    for (int q = 0; q < kEntries; ++q) {
      if (IsValid(entries[q], first_slot)) fetched[q] = __ldg(entries[q].index + first_slot);
    }
  }

  __device__ __forceinline__ void Decode(int32_t step, int32_t table) const {
    const int32_t first_slot = step * args.config.block_kept;
    const uint32_t start = this->Table(table);
    const int32_t count = EntryCount();
#pragma unroll
    for (int q = 0; q < kEntries; ++q) {
      if (thread + q * kThreads < count) {
        DecodeEntry(entries[q], fetched[q], step, first_slot, start);
      }
    }
    for (int32_t i = thread + kEntries * kThreads; i < count; i += kThreads) {
      const Entry entry = MakeEntry(i);
      const uint8_t index = IsValid(entry, first_slot) ? __ldg(entry.index + first_slot) : 0;
      DecodeEntry(entry, index, step, first_slot, start);
    }
  }

  __device__ __forceinline__ void DecodeEntry(const Entry& entry, uint8_t index, int32_t step,
                                              int32_t first_slot, uint32_t table) const {
    const bool valid = IsValid(entry, first_slot);
    if constexpr (kWindow) {
      const int32_t first_feature = step * args.config.block_windows * args.m;
      int32_t line = entry.line + min(int32_t{index}, args.m - 1);
      line = min(line, args.depth - 1 - first_feature);
      // The last line of a stage is always zero.
      line = valid ? line : args.layout.first_count - 1;
      ptx::StoreShared2(table + entry.place,
                        static_cast<uint16_t>(Lines::Offset(line, 0, kRowStride) / 16));
    } else {
      const int32_t source = SourceOf(args, first_slot + entry.slot, index);
      ptx::StoreShared4(table + entry.place, valid ? source : -1);
    }
  }

  // ---- The copies of a step. ----

  // Windows: the last line of each stage stays zero. It is what slots that hold nothing read.
  __device__ __forceinline__ void ClearZeroLines() const {
    if constexpr (kWindow) {
      for (int32_t stage = 0; stage < args.config.stages; ++stage) {
        const uint32_t line = this->Stage(stage) + (args.layout.first_count - 1) * kRowStride;
        for (int32_t i = thread * 4; i < kRowStride; i += kThreads * 4) {
          ptx::StoreShared4(line + i, 0);
        }
      }
    }
  }

  __device__ __forceinline__ void Issue(int32_t step, int32_t stage, int32_t table) const {
    const uint32_t lines = this->Stage(stage);
    const int32_t first_slot = step * args.config.block_kept;
    const int32_t valid_slots = min(args.config.block_kept, args.valid_kept - first_slot);
    const uint32_t value_pitch = static_cast<uint32_t>(args.values_cols) * kElement;
    const uint32_t pitch = static_cast<uint32_t>(args.rows) * kElement;
    CopyLines<kValuePass, kValueStride>(values, value_pitch, first_slot, valid_slots, table_slots,
                                        lines + args.layout.second_offset);
    if constexpr (kWindow) {
      const int32_t first_feature = step * args.config.block_windows * args.m;
      const int32_t features = args.layout.first_count - 1;
      CopyLines<kXPass, kRowStride>(x, pitch, first_feature,
                                    min(features, args.depth - first_feature), features, lines);
    } else {
      GatherLines(table, pitch, lines);
    }
  }

  // `count` lines of a stage from consecutive lines of the matrix, of which `valid` are copied and
  // the others zeroed.
  template <int kPass, int kStride>
  __device__ __forceinline__ static void CopyLines(const Copies& c, uint32_t pitch, int32_t first,
                                                   int32_t valid, int32_t count, uint32_t lines) {
    const unsigned char* source =
        c.source + uint64_t{static_cast<uint32_t>(first + c.line)} * pitch;
    uint32_t target = lines + c.place;
    int32_t line = 0;
#pragma unroll 1
    for (; line + kBatch * kPass <= valid; line += kBatch * kPass) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        ptx::CopyAsync16(target + i * kPass * kStride, source + uint64_t{pitch} * (i * kPass),
                         c.bytes);
      }
      source += uint64_t{pitch} * (kBatch * kPass);
      target += kBatch * kPass * kStride;
    }
#pragma unroll 1
    for (line += c.line; line < count; line += kPass) {
      ptx::CopyAsync16(target, source, line < valid ? c.bytes : 0);
      source += uint64_t{pitch} * kPass;
      target += kPass * kStride;
    }
  }

  // One line for each slot of each group. Table entries are read one turn ahead of their copies.
  __device__ __forceinline__ void GatherLines(int32_t table, uint32_t pitch, uint32_t lines) const {
    uint32_t entry = this->Table(table) + x.line * kXCopies * sizeof(TableEntry);
    uint32_t target = lines + x.place;
    const uint32_t end = lines + args.layout.first_count * kRowStride;
    int32_t features[kXCopies], next[kXCopies];
    ptx::LoadShared(entry, features);
#pragma unroll 2
    for (; target < end; target += kSlotUnit * kRowStride) {
      entry += kSlotUnit * sizeof(TableEntry);
      ptx::LoadShared(entry, next);  // behind the last entry there is something, too
#pragma unroll
      for (int i = 0; i < kXCopies; ++i) {
        const uint64_t offset = uint64_t{static_cast<uint32_t>(features[i])} * pitch;
        ptx::CopyAsync16(target + i * kXPass * kRowStride, x.source + offset,
                         features[i] >= 0 ? x.bytes : 0);
        features[i] = next[i];
      }
    }
  }
};

}  // namespace jax_nm
