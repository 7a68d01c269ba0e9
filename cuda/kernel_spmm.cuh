// spmm:  y[r, c] = sum over kept slots j of  x[r, source(g, j)] * values[j, c],   g = c / L.
//
// The hierarchy of NM-SpMM: a block owns block_rows x block_cols of y, a warp 8 x 4 threads of it,
// a thread a register tile. Each step stages x for some slots (whole windows, or gathered rows) and
// the values; the inner product then picks its rows of x in shared memory.
#pragma once

#include <type_traits>

#include "pipeline.cuh"
#include "spmm_sums.cuh"

namespace jax_nm {

// kSharedGroup: the columns of one thread lie in one group (vector_length % kThreadCols == 0), so
// one gathered row of x serves all of them.
template <class T_, class Tile_, Staging kStaging_, bool kSharedGroup_>
struct SpmmTraits {
  using T = T_;
  using Tile = Tile_;
  static constexpr Staging kStaging = kStaging_;
  static constexpr bool kSharedGroup = kSharedGroup_;
  static constexpr int kElement = sizeof(T);
  static constexpr int kRowStride = PaddedRowBytes(Tile::kBlockRows, kElement);
  static constexpr int kValueStride = Tile::kBlockCols * kElement;
  static_assert(kSharedGroup || kStaging == Staging::kWindow,
                "Gathering stages rows per group, so a thread must have one group");
};

template <class Traits>
struct SpmmBlock : SpmmSums<typename Traits::T, typename Traits::Tile> {
  using T = typename Traits::T;
  using Tile = typename Traits::Tile;
  using Base = SpmmSums<T, Tile>;
  using Base::Accumulate;
  using Base::kCols;
  using Base::kRows;
  using Base::LoadRows;
  using Base::sums;
  using Base::thread_col;
  using Base::thread_row;
  static constexpr bool kWindow = Traits::kStaging == Staging::kWindow;
  using TableEntry = std::conditional_t<kWindow, uint16_t, int32_t>;

  const KernelArgs& args;
  unsigned char* shared;
  TileCoordinates tile;
  Matrix<T> x;
  Matrix<T> values;
  const uint8_t* indices;
  int32_t table_slots;  // slots per group in a table
  int32_t row0, col0;   // of the block
  int32_t first_group;
  uint8_t fetched[kFetched];

  __device__ __forceinline__ SpmmBlock(const KernelArgs& a, unsigned char* s)
      : Base(a),
        args(a),
        shared(s),
        tile(LocateTile(a.first_tile + blockIdx.x, a.outer_tiles, a.inner_tiles, a.config.split)) {
    const T* first = static_cast<const T*>(a.first) + tile.batch * a.rows * a.depth;
    const T* second = static_cast<const T*>(a.second) + tile.batch * a.kept * a.values_cols;
    x = {first, a.rows, a.depth, a.first_feature_major, a.first_vector};
    values = {second, a.values_cols, a.kept, true, a.second_vector};
    indices = a.indices + tile.batch * a.groups * a.kept;
    table_slots = TableSlots(Op::kSpmm, a.config);
    row0 = tile.outer * Tile::kBlockRows;
    col0 = tile.inner * Tile::kBlockCols;
    first_group = col0 / a.vector_length;
  }

  __device__ __forceinline__ TableEntry* Table(int32_t table) const {
    return reinterpret_cast<TableEntry*>(shared + args.layout.table_offset +
                                         table * args.layout.table_bytes);
  }

  __device__ __forceinline__ IndexBlock Indices(int32_t step) const {
    return {indices, first_group, step * args.config.block_kept, table_slots,
            args.config.block_kept};
  }

  // Slots of the step, rounded up to whole unrolled steps: the surplus reads zeros.
  __device__ __forceinline__ int32_t StepSlots(int32_t step) const {
    const int32_t left = args.valid_kept - step * args.config.block_kept;
    return RoundUp(min(left, args.config.block_kept), kSlotUnroll);
  }

  // Window staging: the row after the last one of each stage stays zero.
  __device__ __forceinline__ void ClearZeroRows() const {
    if constexpr (kWindow) {
      for (int32_t stage = 0; stage < args.config.stages; ++stage) {
        unsigned char* row = shared + stage * args.layout.stage_bytes +
                             (args.layout.first_count - 1) * Traits::kRowStride;
        for (int32_t i = threadIdx.x * 4; i < Traits::kRowStride; i += blockDim.x * 4) {
          *reinterpret_cast<uint32_t*>(row + i) = 0;
        }
      }
    }
  }

  __device__ __forceinline__ void Fetch(int32_t step) {
    FetchIndices(args, Indices(step), fetched);
  }

  // Window staging: offset of the row in its stage, in 16-byte units. Gathering: the feature.
  __device__ __forceinline__ void Decode(int32_t step, int32_t table) {
    TableEntry* entries = Table(table);
    const int32_t window_feature = step * args.config.block_windows * args.m;
    const int32_t zero_row = args.layout.first_count - 1;
    DecodeIndices(args, Indices(step), fetched, [&](int32_t i, int32_t source) {
      if constexpr (kWindow) {
        const int32_t row = source < 0 ? zero_row : source - window_feature;
        entries[i] = static_cast<uint16_t>(row * (Traits::kRowStride / 16));
      } else {
        entries[i] = source;
      }
    });
  }

  __device__ __forceinline__ void Issue(int32_t step, int32_t stage, int32_t table) const {
    unsigned char* base = shared + stage * args.layout.stage_bytes;
    if constexpr (kWindow) {
      const int32_t first_feature = step * args.config.block_windows * args.m;
      const int32_t features = args.depth;
      StageFeatures(x, row0, Tile::kBlockRows, Tile::kThreads, args.layout.first_count - 1, base,
                    Traits::kRowStride, [=](int32_t i) {
                      return first_feature + i < features ? first_feature + i : -1;
                    });
    } else {
      const TableEntry* sources = Table(table);
      StageFeatures(x, row0, Tile::kBlockRows, Tile::kThreads, args.layout.first_count, base,
                    Traits::kRowStride, [=](int32_t i) { return sources[i]; });
    }
    const int32_t first_slot = step * args.config.block_kept;
    const int32_t last_slot = min(first_slot + args.config.block_kept, args.valid_kept);
    StageFeatures(values, col0, Tile::kBlockCols, Tile::kThreads, table_slots,
                  base + args.layout.second_offset, Traits::kValueStride,
                  [=](int32_t i) { return first_slot + i < last_slot ? first_slot + i : -1; });
  }

  __device__ __forceinline__ int32_t GroupOf(int32_t column) const {
    return args.by_vector_length.Quotient(col0 + column) - first_group;
  }

  __device__ __forceinline__ void Compute(int32_t step, int32_t stage, int32_t table) {
    const unsigned char* base = shared + stage * args.layout.stage_bytes;
    const unsigned char* rows = base + thread_row * Traits::kElement;
    const unsigned char* weights = base + args.layout.second_offset + thread_col * Traits::kElement;
    const int32_t slots = StepSlots(step);
    if constexpr (Traits::kSharedGroup) {
      ComputeSharedGroup(rows, weights, slots, table);
    } else {
      ComputePerColumn(rows, weights, slots, table);
    }
  }

  // Four slots' row offsets in bytes.
  struct Offsets {
    uint2 packed;
    __device__ __forceinline__ int32_t operator[](int u) const {
      const uint32_t word = u < 2 ? packed.x : packed.y;
      return static_cast<int32_t>(u % 2 == 0 ? (word & 0xffffu) << 4 : word >> 16 << 4);
    }
  };

  // Each slot's operands are read while the previous slot is multiplied.
  __device__ __forceinline__ void ComputeSharedGroup(const unsigned char* rows,
                                                     const unsigned char* weights, int32_t slots,
                                                     int32_t table) {
    const int32_t first_entry = GroupOf(thread_col) * table_slots;
    const TableEntry* entries = Table(table) + first_entry;
    const unsigned char* gathered = rows + first_entry * Traits::kRowStride;
    const auto offsets_of = [&](int32_t slot) {
      Offsets offsets{};
      if constexpr (kWindow) offsets.packed = *reinterpret_cast<const uint2*>(entries + slot);
      return offsets;
    };
    float row[2][kRows], weight[2][kCols];
    const auto load = [&](int buffer, int32_t slot, int32_t offset) {
      LoadRows(kWindow ? rows + offset : gathered + slot * Traits::kRowStride, row[buffer]);
      LoadVector<T>(weights + slot * Traits::kValueStride, weight[buffer]);
    };
    Offsets current = offsets_of(0);
    load(0, 0, current[0]);
    for (int32_t slot = 0; slot < slots; slot += kSlotUnroll) {
      // The last step reads an operand that it does not use, of a slot that exists.
      const int32_t following = slot + kSlotUnroll < slots ? slot + kSlotUnroll : slot;
      const Offsets next = offsets_of(following);
#pragma unroll
      for (int u = 0; u < kSlotUnroll; ++u) {
        if (u + 1 < kSlotUnroll) {
          load((u + 1) % 2, slot + u + 1, current[u + 1]);
        } else {
          load(0, following, next[0]);
        }
        Accumulate(row[u % 2], weight[u % 2]);
      }
      current = next;
    }
  }

  __device__ __forceinline__ void ComputePerColumn(const unsigned char* rows,
                                                   const unsigned char* weights, int32_t slots,
                                                   int32_t table) {
    const TableEntry* entries = Table(table);
    int32_t first_entry[kCols];
#pragma unroll
    for (int t = 0; t < kCols; ++t) first_entry[t] = GroupOf(thread_col + t) * table_slots;
    for (int32_t slot = 0; slot < slots; ++slot) {
      float weight[kCols];
      LoadVector<T>(weights + slot * Traits::kValueStride, weight);
#pragma unroll
      for (int t = 0; t < kCols; ++t) {
        float row[kRows];
        LoadRows(rows + entries[first_entry[t] + slot] * 16, row);
#pragma unroll
        for (int i = 0; i < kRows; ++i) sums[i][t] += row[i] * weight[t];
      }
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Tile::kThreads, Traits::Tile::kMinBlocks)
    SpmmKernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(16) unsigned char shared[];
  SpmmBlock<Traits> block(args, shared);
  const StepRange range = StepsOf(block.tile.split, args.config.split, args.steps);
  block.ClearZeroRows();
  RunPipeline(block, range.first, range.last, args.config.stages);
  block.Store(args, block.tile);
}

}  // namespace jax_nm
