// A warp that multiplies what lies in the stages of the kernels for short vectors.
#pragma once

#include "hopper_walk.cuh"
#include "ptx_mma.cuh"
#include "short_ring.cuh"
#include "short_writer.cuh"

namespace jax_nm {

// The rows of a product are rows of x in the order of shared memory: a lane reads 8 consecutive
// rows of each of its four slots, 16 bytes, and pairs the slots. The slots of lane q of a quad are
// q, q + 4, q + 8 and q + 12, so that the four lines that a quarter of a warp reads at once are of
// neighbouring slots, which seldom lie in the same banks.
//
// A unit is 16 slots of the stage. Its subunits are the slabs of 64 rows for each group of the
// warp's columns. The operands of the next subunit are on their way while one is multiplied.
template <class T, class Out, class Tile, int kGroupCols>
class ShortConsumer {
 public:
  __device__ __forceinline__ ShortConsumer(const ShortArgs& args, const ShortShared& shared,
                                           int32_t warp)
      : args_(args), shared_(shared), warp_(warp), lane_(threadIdx.x % 32) {
    const int32_t p = lane_ / 4, line = lane_ % 8;
    vectors_ = p * 0x100010;  // the vector of a line, as it counts in both halves of a word
    // Lines 2 q and 2 q + 1 of the two matrices of a product are the slots of lane q.
    const int32_t slot = lane_ / 8 % 2 * 8 + line % 2 * 4 + line / 2;
    const int32_t col = warp_ * Tile::kWarpCols;
    const int32_t vector = col % kHopperLineElements / 8 + lane_ / 16;
    value_offset_ = args.layout.values_offset +
                    col / kHopperLineElements * args.layout.values_slab_bytes +
                    slot * kHopperLineBytes + (vector ^ slot % 8) * 16;
    table_offset_ = warp_ * kGroups * args.layout.chunk_bytes + lane_ % 4 * 8;
    zero_ = static_cast<uint32_t>(args.common.tiles >> 31);
  }

  __device__ __forceinline__ void Run() {
    const HopperWalk walk(args_.common, blockIdx.x, gridDim.x);
    const int32_t count = walk.Count();
    for (int32_t i = 0; i < count; ++i) {
      Multiply();
      ShortWriter<Out, Tile>(args_, args_.common.raster.Locate(walk.Work(i).tile), warp_)
          .Store(sums_);
    }
  }

 private:
  static constexpr int kGroups = Tile::kWarpCols / kGroupCols;
  static constexpr int kGroupTiles = kGroupCols / 8;
  static constexpr int kColTiles = Tile::kWarpCols / 8;
  static constexpr int kSubunits = kGroups * Tile::kSlabs;
  static constexpr uint32_t kUnitBytes = kShortSlots * kHopperLineBytes;  // of a slab of values
  static_assert(kGroupCols % 8 == 0 && Tile::kWarpCols % kGroupCols == 0,
                "a warp's columns are whole groups, or a part of one");

  // 8 rows of the lane's four slots.
  struct Rows {
    uint32_t pairs[4][4];
  };
  // Of a product, for each 8 columns.
  struct Values {
    uint32_t of[kColTiles][2];
  };
  // Where the lines of the lane's four slots are, for each group.
  struct Entries {
    int32_t of[kGroups][2];
  };
  // Where a unit is.
  struct Unit {
    uint32_t x;       // of the stage
    uint32_t values;  // that the lane reads
    uint32_t table;
  };

  __device__ __forceinline__ Unit FirstOf(int32_t stage) const {
    const uint32_t x = shared_.X(stage);
    return {x, x + value_offset_, shared_.Table(stage) + table_offset_};
  }

  // ---- Shared memory to registers ----

  __device__ __forceinline__ void LoadEntries(const Unit& unit, Entries& entries) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      ptx::LoadShared(unit.table + g * args_.layout.chunk_bytes, entries.of[g]);
    }
  }

  __device__ __forceinline__ void LoadRows(uint32_t x, const int32_t (&entries)[2],
                                           Rows& rows) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t both = static_cast<uint32_t>(entries[i / 2]) ^ vectors_;
      const uint4 words = ptx::LoadShared16(x + (i % 2 == 0 ? both & 0xffffu : both >> 16));
      rows.pairs[i][0] = words.x;
      rows.pairs[i][1] = words.y;
      rows.pairs[i][2] = words.z;
      rows.pairs[i][3] = words.w;
    }
  }

  __device__ __forceinline__ static void LoadValues(const Unit& unit, Values& values) {
#pragma unroll
    for (int t = 0; t < kColTiles; t += 2) {
      uint32_t words[4];
      ptx::LoadMatricesTransposed(words, unit.values ^ t * 16);
      values.of[t][0] = words[0];
      values.of[t][1] = words[1];
      values.of[t + 1][0] = words[2];
      values.of[t + 1][1] = words[3];
    }
  }

  // ---- Products ----

  // The sums of one tile. Units go in pairs, so that every operand has its registers.
  __device__ __forceinline__ void Multiply() {
#pragma unroll
    for (int i = 0; i < ShortSums<Tile>::kCount; ++i) sums_[i] = 0.0f;
    left_ = args_.common.steps * args_.units;
    in_stage_ = 0;
    WaitFull();
    unit_ = FirstOf(turn_.stage);
    Entries entries;
    LoadEntries(unit_, entries);
    LoadRows(unit_.x, entries.of[0], rows_[0]);
    LoadValues(unit_, values_[0]);
#pragma unroll 1
    while (true) {
      MultiplyUnit<0>(entries);
      if (left_ == 0) break;
      MultiplyUnit<1>(entries);
      if (left_ == 0) break;
    }
  }

  template <int kTurn>
  __device__ __forceinline__ void MultiplyUnit(Entries& entries) {
    constexpr int kFirst = kTurn * kSubunits % 2;  // of the operands of x
    const int32_t stage = turn_.stage;
    const bool frees = ++in_stage_ == args_.units;
    Unit next = unit_;
    // Behind the last unit of a tile nothing is needed: the same one is read again.
    if (--left_ > 0) {
      if (frees) {
        turn_.Advance(args_.stages);
        in_stage_ = 0;
        WaitFull();
        next = FirstOf(turn_.stage);
      } else {
        next.values += kUnitBytes;
        next.table += kShortSlots * 2;
      }
    } else {
      turn_.Advance(args_.stages);
    }
    Entries following;
    LoadEntries(next, following);
#pragma unroll
    for (int i = 0; i < kSubunits; ++i) {
      Rows& ahead = rows_[(kFirst + i + 1) % 2];
      if (i + 1 < kSubunits) {
        const int slab = (i + 1) % Tile::kSlabs;
        LoadRows(unit_.x + slab * args_.layout.x_slab_bytes, entries.of[(i + 1) / Tile::kSlabs],
                 ahead);
      } else {
        LoadRows(next.x, following.of[0], ahead);
        LoadValues(next, values_[1 - kTurn]);
      }
      MultiplySubunit(i, rows_[(kFirst + i) % 2], values_[kTurn]);
    }
    if (frees) Release(stage, rows_[(kFirst + kSubunits - 1) % 2], values_[kTurn]);
    unit_ = next;
    entries = following;
  }

  __device__ __forceinline__ void MultiplySubunit(int i, const Rows& rows, const Values& values) {
    const int slab = i % Tile::kSlabs, first = i / Tile::kSlabs * kGroupTiles;
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      const uint32_t x[4] = {__byte_perm(rows.pairs[0][v], rows.pairs[1][v], 0x5410),
                             __byte_perm(rows.pairs[0][v], rows.pairs[1][v], 0x7632),
                             __byte_perm(rows.pairs[2][v], rows.pairs[3][v], 0x5410),
                             __byte_perm(rows.pairs[2][v], rows.pairs[3][v], 0x7632)};
#pragma unroll
      for (int t = first; t < first + kGroupTiles; ++t) {
        float* sums = sums_ + ShortSums<Tile>::Index(slab, v, t, 0);
        ptx::Mma16816<T>(*reinterpret_cast<float (*)[4]>(sums), x, values.of[t]);
      }
    }
  }

  // ---- The ring ----

  __device__ __forceinline__ void WaitFull() const {
    TestDelay();
    ptx::BarrierWait(shared_.Full(turn_.stage), turn_.parity);
    if (kFreesEarly && lane_ == 0) ptx::BarrierArrive(shared_.Empty(turn_.stage));
  }

  // The last of the stage's operands have to be there before it is filled again. They are read in
  // order, so the address waits for those of the last unit, by a zero that only the run of the
  // kernel knows.
  __device__ __forceinline__ void Release(int32_t stage, const Rows& rows,
                                          const Values& values) const {
    if constexpr (kFreesEarly) return;
    uint32_t read = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) read ^= rows.pairs[i][0];
#pragma unroll
    for (int t = 0; t < kColTiles; t += 2) read ^= values.of[t][0];
    TestDelay();
    __syncwarp();
    if (lane_ == 0) ptx::BarrierArrive(shared_.Empty(stage) + (read & zero_));
  }

  const ShortArgs& args_;
  const ShortShared& shared_;
  const int32_t warp_;
  const int32_t lane_;
  uint32_t vectors_;
  uint32_t value_offset_;  // from the start of a stage
  uint32_t table_offset_;  // from the start of its table
  uint32_t zero_;
  ShortTurn turn_;
  int32_t left_;      // units of the tile
  int32_t in_stage_;  // of them, done in the stage
  Unit unit_;
  Rows rows_[2];
  Values values_[2];
  float sums_[ShortSums<Tile>::kCount];
};

}  // namespace jax_nm
