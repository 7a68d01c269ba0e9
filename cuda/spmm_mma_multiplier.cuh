// The warps of spmm on tensor cores that multiply: from a stage to registers, the products, and the
// sums at the end back to shared memory.
#pragma once

#include "ptx_barrier.cuh"
#include "ptx_mma.cuh"
#include "spmm_mma_stages.cuh"
#include "test_delay.cuh"
#include "tf32.cuh"

namespace jax_nm {

// kGroupCols columns of a warp surely lie in one group, and share what is gathered.
template <class T_, class Tile_, Staging kStaging_, int kGroupCols_>
struct SpmmMmaTraits {
  using T = T_;
  using Tile = Tile_;
  static constexpr Staging kStaging = kStaging_;
  static constexpr int kGroupCols = kGroupCols_;
  using Lines = SwizzledLines<T>;
  static constexpr int kSlotUnit = kMmaSlots;
  static constexpr int kCopyThreads = kMmaCopyThreads;
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kDepth = kHalf ? 16 : 8;  // slots of one product
  static constexpr int kProducts = kMmaSlots / kDepth;
  static constexpr int kUnitRows = kHalf ? 16 : 32;  // rows of x that a warp reads at once
  static constexpr int kUnitTiles = kUnitRows / 16;
  static constexpr int kUnits = Tile::kWarpRows / kUnitRows;
  static constexpr int kGroups = Tile::kWarpCols / kGroupCols;  // of a warp
  static constexpr int kGroupTiles = kGroupCols / 8;
  static constexpr int kRowTiles = Tile::kWarpRows / 16;
  static constexpr int kColTiles = Tile::kWarpCols / 8;
  // In TF32 a lane reads four columns at once where they lie in one group.
  static constexpr bool kQuads = !kHalf && kGroupCols >= 32;
  static_assert(kGroupCols % 8 == 0 && Tile::kWarpCols % kGroupCols == 0,
                "A warp's columns are whole groups, or a part of one");
  static_assert(kStaging_ == Staging::kWindow || kGroups == 1,
                "Gathering stages rows per group, so a warp must have one group");
};

template <class Traits>
struct SpmmMmaMultiplier : SpmmMmaStages<Traits> {
  using Base = SpmmMmaStages<Traits>;
  using Base::args;
  using Base::kElement;
  using Base::kRowStride;
  using Base::kValueStride;
  using Base::kWindow;
  using Base::steps;
  using Base::table_slots;
  using typename Base::Lines;
  using typename Base::T;
  using typename Base::TableEntry;
  using typename Base::Tile;
  static constexpr bool kHalf = Traits::kHalf;
  static constexpr int kProducts = Traits::kProducts;
  static constexpr int kGroups = Traits::kGroups;
  static constexpr int kUnits = Traits::kUnits;
  static constexpr int kUnitTiles = Traits::kUnitTiles;
  static constexpr int kGroupTiles = Traits::kGroupTiles;
  static constexpr int kRowTiles = Traits::kRowTiles;
  static constexpr int kColTiles = Traits::kColTiles;

  // Units of x that a warp reads for kMmaSlots slots, of which some are in flight.
  static constexpr int kStepUnits = kProducts * kGroups * kUnits;
  static constexpr int kRing = kStepUnits >= 4 ? 4 : 2;
  static constexpr int kAhead = kRing / 2;
  static_assert(kStepUnits % kRing == 0, "A unit has the same place in the ring in every step");

  // Shared addresses of what a lane reads of kMmaSlots slots, of each product and group.
  struct Addresses {
    uint32_t of[kProducts][kGroups];
    uint32_t next[kProducts][kGroups];  // TF32: of the slot four further on
  };
  using Unit = uint32_t[kUnitTiles][4];
  using Values = uint32_t[kColTiles][2];

  int32_t lane;
  int32_t warp_row, warp_col;  // in the block
  float sums[kRowTiles][kColTiles][4];

  __device__ __forceinline__ SpmmMmaMultiplier(const KernelArgs& a, const void* shared)
      : Base(a, shared) {
    const int32_t warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    warp_row = WarpRow(warp);
    warp_col = WarpCol(warp);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int t = 0; t < kColTiles; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][t][e] = 0.0f;
      }
    }
  }

  // Of a warp's tile in the block's.
  __device__ __forceinline__ static int32_t WarpRow(int32_t warp) {
    return warp % Tile::kRowWarps * Tile::kWarpRows;
  }
  __device__ __forceinline__ static int32_t WarpCol(int32_t warp) {
    return warp / Tile::kRowWarps * Tile::kWarpCols;
  }

  // ---- Shared memory to registers. A line begins at a multiple of 128 bytes, so `byte` of it is
  // found by exchanging the bits below 128, swizzled, and adding the others. ----

  __device__ __forceinline__ static uint32_t At(uint32_t line, uint32_t byte) {
    return (line ^ byte % 128) + byte / 128 * 128;
  }

  // The slot of a product that a lane reads first, and the byte of x in its line.
  __device__ __forceinline__ int32_t XSlot() const {
    return kHalf ? lane % 8 + lane / 16 * 8 : lane % 4;
  }
  __device__ __forceinline__ uint32_t XByte() const {
    return warp_row * kElement + (kHalf ? lane / 8 % 2 : lane / 4) * 16;
  }

  // The same of values: matrices of ldmatrix are the two operands of a product, then of the next.
  __device__ __forceinline__ int32_t ValueSlot() const { return kHalf ? lane % 16 : lane % 4; }
  __device__ __forceinline__ uint32_t ValueByte() const {
    return warp_col * kElement + (kHalf            ? lane / 16 * 16
                                  : Traits::kQuads ? lane / 4 * 16
                                                   : lane / 4 * 4);
  }

  // `lines` are those of the stage or, where rows are gathered, of the warp's group in it. `slots`
  // are the table's entries for the warp's groups.
  __device__ __forceinline__ void FindSlots(const uint32_t (&slots)[kGroups], uint32_t lines,
                                            int32_t first_slot, Addresses& a) const {
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      const int32_t slot = first_slot + k * Traits::kDepth + XSlot();
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        if constexpr (kWindow) {
          const uint32_t entry = slots[g] + slot * sizeof(TableEntry);
          a.of[k][g] = At(lines + ptx::LoadShared2(entry) * 16u, XByte());
          if constexpr (!kHalf) {
            const uint32_t next = entry + 4 * sizeof(TableEntry);
            a.next[k][g] = At(lines + ptx::LoadShared2(next) * 16u, XByte());
          }
        } else {
          a.of[k][g] = At(lines + Lines::Offset(slot, 0, kRowStride), XByte());
          if constexpr (!kHalf) a.next[k][g] = a.of[k][g] + 4 * kRowStride;
        }
      }
    }
  }

  // `unit` counts the units of kMmaSlots slots: those of a group, group by group, for each product.
  __device__ __forceinline__ static void LoadUnit(const Addresses& a, int unit, Unit& out) {
    const int k = unit / (kGroups * kUnits), g = unit / kUnits % kGroups, u = unit % kUnits;
    const uint32_t address = At(a.of[k][g], u * Traits::kUnitRows * kElement);
    if constexpr (kHalf) {
      ptx::LoadMatricesTransposed(out[0], address);
    } else {
      // Rows 4 i to 4 i + 3 are rows i and i + 8 of the first product and of the second.
      const uint4 first = ptx::LoadShared16(address);
      const uint4 second = ptx::LoadShared16(At(a.next[k][g], u * Traits::kUnitRows * kElement));
      const uint32_t words[2][4] = {{first.x, first.y, second.x, second.y},
                                    {first.z, first.w, second.z, second.w}};
#pragma unroll
      for (int t = 0; t < kUnitTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[t][i] = RoundToTf32(words[t][i]);
      }
    }
  }

  // `line` is the lane's first line of the product's values.
  __device__ __forceinline__ static void LoadValues(uint32_t line, Values& out) {
    if constexpr (kHalf) {
#pragma unroll
      for (int t = 0; t < kColTiles; t += 2) {
        uint32_t words[4];
        ptx::LoadMatricesTransposed(words, At(line, t * 16));
        out[t][0] = words[0];
        out[t][1] = words[1];
        out[t + 1][0] = words[2];
        out[t + 1][1] = words[3];
      }
    } else {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const uint32_t slot = line + s * 4 * kValueStride;
        if constexpr (Traits::kQuads) {
          // Columns 4 i to 4 i + 3 are column i of four products.
#pragma unroll
          for (int t = 0; t < kColTiles; t += 4) {
            const uint4 quad = ptx::LoadShared16(slot + t * 32);
            const uint32_t words[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) out[t + i][s] = RoundToTf32(words[i]);
          }
        } else {
#pragma unroll
          for (int t = 0; t < kColTiles; ++t) {
            out[t][s] = RoundToTf32(ptx::LoadShared4(At(slot, t * 32)));
          }
        }
      }
    }
  }

  // ---- The products. ----

  __device__ __forceinline__ void MultiplyUnit(int unit, const Unit& x, const Values& values) {
    const int g = unit / kUnits % kGroups, u = unit % kUnits;
#pragma unroll
    for (int i = 0; i < kUnitTiles; ++i) {
#pragma unroll
      for (int t = g * kGroupTiles; t < (g + 1) * kGroupTiles; ++t) {
        if constexpr (kHalf) {
          ptx::Mma16816<T>(sums[u * kUnitTiles + i][t], x[i], values[t]);
        } else {
          ptx::Mma1688(sums[u * kUnitTiles + i][t], x[i], values[t]);
        }
      }
    }
  }

  __device__ __forceinline__ void Run() {
    MmaTurn turn;
    for (int32_t step = steps.first; step < steps.last; ++step) {
      TestDelay();
      ptx::BarrierWait(this->Full(turn.stage), turn.round % 2);
      if (kFreesEarly && lane == 0) ptx::BarrierArrive(this->Empty(turn.stage));
      const uint32_t last_read = Multiply(step, turn.stage, turn.table);
      // What the products used has arrived before they began; of what was read ahead for nothing,
      // the address waits for a word, by a zero that only the run of the kernel knows.
      const uint32_t zero = static_cast<uint32_t>(args.batch >> 62);
      __syncwarp();
      if (!kFreesEarly && lane == 0) {
        ptx::BarrierArrive(this->Empty(turn.stage) + (last_read & zero));
      }
      turn.Advance(args.config.stages);
    }
  }

  // One step. Returns a word of the unit that was read last.
  __device__ __forceinline__ uint32_t Multiply(int32_t step, int32_t stage, int32_t table) {
    uint32_t lines = this->Stage(stage);
    const int32_t slots = this->StepSlots(step);
    const uint32_t value_lines =
        At(lines + args.layout.second_offset + Lines::Offset(ValueSlot(), 0, kValueStride),
           ValueByte());
    uint32_t entries[kGroups];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int32_t group = this->GroupOf(warp_col + g * Traits::kGroupCols);
      entries[g] = this->Table(table) + group * table_slots * sizeof(TableEntry);
      if constexpr (!kWindow) lines += group * table_slots * kRowStride;
    }
    Addresses current, following;
    Unit ring[kRing];
    Values values[2];
    FindSlots(entries, lines, 0, current);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) LoadUnit(current, i, ring[i]);
    LoadValues(value_lines, values[0]);
#pragma unroll(kHalf ? 2 : 1)
    for (int32_t slot = 0; slot < slots; slot += kMmaSlots) {
      // The last step reads operands that it does not use, of slots that exist.
      const int32_t next = slot + kMmaSlots < slots ? slot + kMmaSlots : slot;
      FindSlots(entries, lines, next, following);
#pragma unroll
      for (int i = 0; i < kStepUnits; ++i) {
        const int k = i / (kGroups * kUnits);
        if (i % (kGroups * kUnits) == 0) {
          const int32_t first = k + 1 < kProducts ? slot + (k + 1) * Traits::kDepth : next;
          LoadValues(value_lines + first * kValueStride, values[(k + 1) % 2]);
        }
        const int ahead = i + kAhead;
        LoadUnit(ahead < kStepUnits ? current : following, ahead % kStepUnits, ring[ahead % kRing]);
        MultiplyUnit(i, ring[i % kRing], values[k % 2]);
      }
      current = following;
      if constexpr (kProducts == 1) CopyValues(values[1], values[0]);
    }
    return ring[(kStepUnits + kAhead - 1) % kRing][0][0];
  }

  // Costs nothing: the loop is unrolled twice.
  __device__ __forceinline__ static void CopyValues(const Values& from, Values& to) {
#pragma unroll
    for (int t = 0; t < kColTiles; ++t) {
      to[t][0] = from[t][0];
      to[t][1] = from[t][1];
    }
  }

  // ---- The result, in pieces of 32 x 32 that turn through the warp's shared memory. ----

  static constexpr int kRowPieces = Tile::kWarpRows / kMmaPiece;
  static constexpr int kPieces = kRowPieces * (Tile::kWarpCols / kMmaPiece);
  static constexpr int kMultiplyBarrier = 2;

  // Where the warp's tile has the sum number `e` of a product.
  __device__ __forceinline__ int32_t RowOf(int row_tile, int e) const {
    return kHalf ? row_tile * 16 + lane / 4 + e / 2 * 8
                 : row_tile / 2 * 32 + lane / 4 * 4 + row_tile % 2 * 2 + e / 2;
  }
  __device__ __forceinline__ int32_t ColOf(int col_tile, int e) const {
    return Traits::kQuads ? col_tile / 4 * 32 + lane % 4 * 8 + e % 2 * 4 + col_tile % 4
                          : col_tile * 8 + lane % 4 * 2 + e % 2;
  }

  // Lines of a piece are rows, or columns if these are contiguous in the result. The stages are
  // free: every warp has read its last one.
  __device__ __forceinline__ void WritePieces(unsigned char* shared) const {
    ptx::NamedBarrierSync(kMultiplyBarrier, Tile::kThreads);
    float* pieces = reinterpret_cast<float*>(shared + threadIdx.x / 32 * kPieces * kMmaPieceBytes);
    const int32_t row_stride = args.result_feature_major ? 1 : kMmaPieceStride;
    const int32_t col_stride = args.result_feature_major ? kMmaPieceStride : 1;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int t = 0; t < kColTiles; ++t) {
        float* piece = pieces + (t / 4 * kRowPieces + i / 2) * (kMmaPieceBytes / 4);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          piece[RowOf(i, e) % kMmaPiece * row_stride + ColOf(t, e) % kMmaPiece * col_stride] =
              sums[i][t][e];
        }
      }
    }
  }
};

}  // namespace jax_nm
