// sddmm:  dvalues[j, c] = sum over rows r of  x[r, source(g, j)] * dy[r, c],   g = c / L.
//
// A block owns slots x columns of dvalues, so which rows of x it reads is known once and for all;
// it steps over 64 bytes of rows of both operands at a time.
#pragma once

#include "pipeline.cuh"
#include "tile_io.cuh"

namespace jax_nm {

template <class T_, class Tile_, bool kSharedGroup_>
struct SddmmTraits {
  using T = T_;
  using Tile = Tile_;
  static constexpr bool kSharedGroup = kSharedGroup_;
  static constexpr int kElement = sizeof(T);
  static constexpr int kStepRows = kSddmmRowBytes / kElement;
  static constexpr int kStride = kSddmmRowBytes + 16;
  static constexpr int kVector = 4;  // rows that are multiplied at a time
};

template <class Traits>
struct SddmmBlock {
  using T = typename Traits::T;
  using Tile = typename Traits::Tile;
  static constexpr int kKept = Tile::kThreadKept;
  static constexpr int kCols = Tile::kThreadCols;
  static constexpr int kVector = Traits::kVector;

  const KernelArgs& args;
  unsigned char* shared;
  TileCoordinates tile;
  Matrix<T> x;
  Matrix<T> dy;
  int32_t slot0, col0;
  int32_t first_group;
  int32_t first_window;
  int32_t thread_kept, thread_col;  // in the block: slots thread_kept + 4 i, columns thread_col + t
  int32_t shared_col;               // the staged row of the thread's first column
  int32_t offsets[kKept];           // of the thread's slots in a stage, if its columns agree
  float sums[kKept][kCols];

  __device__ __forceinline__ SddmmBlock(const KernelArgs& a, unsigned char* s)
      : args(a),
        shared(s),
        tile(LocateTile(a.first_tile + blockIdx.x, a.outer_tiles, a.inner_tiles, a.config.split)) {
    const T* first = static_cast<const T*>(a.first) + tile.batch * a.rows * a.depth;
    const T* second = static_cast<const T*>(a.second) + tile.batch * a.rows * a.cols;
    x = {first, a.rows, a.depth, a.first_feature_major, a.first_vector};
    dy = {second, a.rows, a.cols, a.second_feature_major, a.second_vector};
    slot0 = tile.outer * Tile::kBlockKept;
    col0 = tile.inner * Tile::kBlockCols;
    first_group = col0 / a.vector_length;
    first_window = slot0 / a.n;
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int32_t lane_col = lane / Tile::kLaneKept;
    const int32_t warp_col = warp / Tile::kKeptWarps * Tile::kWarpCols;
    thread_kept = warp % Tile::kKeptWarps * Tile::kWarpKept + lane % Tile::kLaneKept;
    thread_col = warp_col + lane_col * kCols;
    shared_col = warp_col + lane_col;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
#pragma unroll
      for (int t = 0; t < kCols; ++t) sums[j][t] = 0.0f;
    }
  }

  __device__ __forceinline__ bool IsWindow() const {
    return args.config.staging == Staging::kWindow;
  }

  // The column that a staged row of dy holds. A thread's columns are consecutive, so that they
  // share a group; in shared memory they lie kLaneCols rows apart, so that the lanes of a warp read
  // consecutive rows, which are in different banks.
  __device__ __forceinline__ static int32_t ColumnOf(int32_t staged) {
    const int32_t within = staged % Tile::kWarpCols;
    return staged - within + within % Tile::kLaneCols * kCols + within / Tile::kLaneCols;
  }

  // The table of (group, slot): the offset of its row of x in a stage, in 16-byte units (window
  // staging), or the feature to gather.
  __device__ __forceinline__ unsigned char* TableBytes() const {
    return shared + args.layout.table_offset;
  }

  __device__ __forceinline__ void DecodeAll() {
    const uint8_t* indices = args.indices + tile.batch * args.groups * args.kept;
    const IndexBlock block{indices, first_group, slot0, Tile::kBlockKept, Tile::kBlockKept};
    uint8_t fetched[kFetched];
    FetchIndices(args, block, fetched);
    DecodeIndices(args, block, fetched, [&](int32_t i, int32_t source) {
      if (IsWindow()) {
        const int32_t row = source < 0 ? 0 : source - first_window * args.m;
        reinterpret_cast<uint16_t*>(TableBytes())[i] =
            static_cast<uint16_t>(row * (Traits::kStride / 16));
      } else {
        reinterpret_cast<int32_t*>(TableBytes())[i] = source;
      }
    });
    __syncthreads();
    if constexpr (Traits::kSharedGroup) {
      const int32_t group = GroupOf(thread_col);
#pragma unroll
      for (int j = 0; j < kKept; ++j) offsets[j] = OffsetOf(group, j);
    }
  }

  __device__ __forceinline__ int32_t GroupOf(int32_t column) const {
    return args.by_vector_length.Quotient(col0 + column) - first_group;
  }

  // Bytes from the start of a stage to the row of x of the thread's j-th slot.
  __device__ __forceinline__ int32_t OffsetOf(int32_t group, int j) const {
    const int32_t entry = group * Tile::kBlockKept + thread_kept + j * Tile::kLaneKept;
    if (IsWindow()) return reinterpret_cast<const uint16_t*>(TableBytes())[entry] * 16;
    return entry * Traits::kStride;
  }

  __device__ __forceinline__ void Fetch(int32_t) const {}
  __device__ __forceinline__ void Decode(int32_t, int32_t) const {}

  __device__ __forceinline__ void Issue(int32_t step, int32_t stage, int32_t) const {
    unsigned char* base = shared + stage * args.layout.stage_bytes;
    const int32_t row = step * Traits::kStepRows;
    if (IsWindow()) {
      const int32_t first_feature = first_window * args.m;
      const int32_t features = args.depth;
      StageFeatures(
          x, row, Traits::kStepRows, Tile::kThreads, args.layout.first_count, base, Traits::kStride,
          [=](int32_t i) { return first_feature + i < features ? first_feature + i : -1; });
    } else {
      const int32_t* sources = reinterpret_cast<const int32_t*>(TableBytes());
      StageFeatures(x, row, Traits::kStepRows, Tile::kThreads, args.layout.first_count, base,
                    Traits::kStride, [=](int32_t i) { return sources[i]; });
    }
    const int32_t first_col = col0;
    const int32_t cols = args.cols;
    StageFeatures(dy, row, Traits::kStepRows, Tile::kThreads, Tile::kBlockCols,
                  base + args.layout.second_offset, Traits::kStride, [=](int32_t i) {
                    const int32_t column = first_col + ColumnOf(i);
                    return column < cols ? column : -1;
                  });
  }

  __device__ __forceinline__ void Compute(int32_t, int32_t stage, int32_t) {
    const unsigned char* base = shared + stage * args.layout.stage_bytes;
    const unsigned char* columns = base + args.layout.second_offset + shared_col * Traits::kStride;
    if constexpr (Traits::kSharedGroup) {
      ComputeSharedGroup(base, columns);
    } else {
      ComputePerColumn(base, columns);
    }
  }

  __device__ __forceinline__ void ComputeSharedGroup(const unsigned char* base,
                                                     const unsigned char* columns) {
#pragma unroll 1
    for (int32_t row = 0; row < Traits::kStepRows; row += kVector) {
      const int32_t at = row * Traits::kElement;
      float gathered[kKept][kVector];
#pragma unroll
      for (int j = 0; j < kKept; ++j) LoadVector<T>(base + offsets[j] + at, gathered[j]);
#pragma unroll
      for (int t = 0; t < kCols; ++t) {
        float column[kVector];
        LoadVector<T>(columns + t * Tile::kLaneCols * Traits::kStride + at, column);
#pragma unroll
        for (int j = 0; j < kKept; ++j) {
#pragma unroll
          for (int k = 0; k < kVector; ++k) sums[j][t] += gathered[j][k] * column[k];
        }
      }
    }
  }

  // One column at a time, so that only its group's offsets are in registers.
  __device__ __forceinline__ void ComputePerColumn(const unsigned char* base,
                                                   const unsigned char* columns) {
#pragma unroll
    for (int t = 0; t < kCols; ++t) {
      const int32_t group = GroupOf(thread_col + t);
      int32_t column_offsets[kKept];
#pragma unroll
      for (int j = 0; j < kKept; ++j) column_offsets[j] = OffsetOf(group, j);
#pragma unroll 1
      for (int32_t row = 0; row < Traits::kStepRows; row += kVector) {
        const int32_t at = row * Traits::kElement;
        float column[kVector];
        LoadVector<T>(columns + t * Tile::kLaneCols * Traits::kStride + at, column);
#pragma unroll
        for (int j = 0; j < kKept; ++j) {
          float gathered[kVector];
          LoadVector<T>(base + column_offsets[j] + at, gathered);
#pragma unroll
          for (int k = 0; k < kVector; ++k) sums[j][t] += gathered[k] * column[k];
        }
      }
    }
  }

  __device__ __forceinline__ void Store() const {
    StoreTyped<T>(args, tile, int64_t{args.kept} * args.cols, args.result,
                  [&](auto* matrix) { StoreTo(matrix); });
  }

  template <class Out>
  __device__ __forceinline__ void StoreTo(Out* dvalues) const {
    const int32_t first_col = col0 + thread_col;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int32_t slot = slot0 + thread_kept + j * Tile::kLaneKept;
      if (slot >= args.kept) continue;
      float line[kCols];
#pragma unroll
      for (int t = 0; t < kCols; ++t) line[t] = slot < args.valid_kept ? sums[j][t] : 0.0f;
      StoreVector(dvalues + int64_t{slot} * args.cols + first_col, line, args.cols - first_col,
                  args.result_vector);
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Tile::kThreads, Traits::Tile::kMinBlocks)
    SddmmKernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(16) unsigned char shared[];
  SddmmBlock<Traits> block(args, shared);
  const StepRange range = StepsOf(block.tile.split, args.config.split, args.steps);
  block.DecodeAll();
  RunPipeline(block, range.first, range.last, args.config.stages);
  block.Store();
}

}  // namespace jax_nm
