// A thread's register tile of y: where it lies in the block's, what it reads of a slot, and how it
// is finished and stored. A fused product adds its bias and applies its activation in registers.
#pragma once

#include "activation.cuh"
#include "tile_io.cuh"

namespace jax_nm {

// Where a lane lies among the 8 along rows and the 4 along columns of its warp.
//
// Shared memory serves a 16-byte load of a warp half by half, not quarter by quarter, only where
// lanes i and i ^ 1, or i and i ^ 2, read the same address. In pairs, half a warp is 8 lanes by 2:
// i and i ^ 1 share their rows, i and i ^ 2 their columns. Otherwise rows take twice the cycles,
// but a quarter of a warp reads 128 bytes of one row of x, wherever the next quarter's row lies:
// right where neighbouring lanes' columns lie in different groups.
struct LanePlace {
  int32_t row, col;
};
__device__ __forceinline__ LanePlace PlaceLane(int32_t lane, bool pairs) {
  if (pairs) return {lane / 2 % 8, lane / 16 * 2 + lane % 2};
  return {lane % 8, lane / 8};
}

template <class T, class Tile>
struct SpmmSums {
  static_assert(Tile::kLaneRows == 8 && Tile::kLaneCols == 4, "PlaceLane knows 8 by 4 lanes");
  static constexpr int kRows = Tile::kThreadRows;
  static constexpr int kCols = Tile::kThreadCols;
  static constexpr int kElement = sizeof(T);
  // A thread's rows come in chunks of one 16-byte vector; the chunks of 8 lanes lie side by side.
  static constexpr int kChunkRows = kRows < 16 / kElement ? kRows : 16 / kElement;
  static constexpr int kChunks = kRows / kChunkRows;
  static constexpr int kChunkStride = Tile::kLaneRows * kChunkRows;  // rows between two chunks

  int32_t thread_row, thread_col;  // in the block
  float sums[kRows][kCols];

  __device__ __forceinline__ explicit SpmmSums(const KernelArgs& args) {
    const int32_t warp = threadIdx.x / 32;
    const bool pairs = args.groups == 1 || args.vector_length % (2 * kCols) == 0;
    const LanePlace lane = PlaceLane(threadIdx.x % 32, pairs);
    thread_row = warp % Tile::kRowWarps * Tile::kWarpRows + lane.row * kChunkRows;
    thread_col = warp / Tile::kRowWarps * Tile::kWarpCols + lane.col * kCols;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int t = 0; t < kCols; ++t) sums[i][t] = 0.0f;
    }
  }

  __device__ __forceinline__ static void LoadRows(const unsigned char* row, float (&out)[kRows]) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      float part[kChunkRows];
      LoadVector<T>(row + chunk * kChunkStride * kElement, part);
#pragma unroll
      for (int i = 0; i < kChunkRows; ++i) out[chunk * kChunkRows + i] = part[i];
    }
  }

  __device__ __forceinline__ void Accumulate(const float (&row)[kRows],
                                             const float (&weight)[kCols]) {
#pragma unroll
    for (int t = 0; t < kCols; ++t) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) sums[i][t] += row[i] * weight[t];
    }
  }

  __device__ __forceinline__ void Store(const KernelArgs& args, const TileCoordinates& tile) {
    const int32_t first_row = tile.outer * Tile::kBlockRows + thread_row;
    const int32_t first_col = tile.inner * Tile::kBlockCols + thread_col;
    const Epilogue& epilogue = args.epilogue;
    if (epilogue.bias != nullptr) AddBias(epilogue.bias + tile.batch * args.cols, first_col, args);
    // The sum, if it is asked for, and the result go through the same code: with two copies of it
    // the compiler spills in the main loop.
#pragma unroll 1
    for (int32_t left = epilogue.sum == nullptr ? 1 : 2; left > 0; --left) {
      if (left == 1) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) ActivateAll(epilogue.activation, sums[i]);
      }
      StoreTyped<T>(args, tile, int64_t{args.rows} * args.cols,
                    left == 1 ? args.result : epilogue.sum,
                    [&](auto* y) { StoreTo(y, first_row, first_col, args); });
    }
  }

  __device__ __forceinline__ void AddBias(const float* bias, int32_t first_col,
                                          const KernelArgs& args) {
#pragma unroll
    for (int t = 0; t < kCols; ++t) {
      const int32_t column = first_col + t;
      const float value = column < args.cols ? __ldg(bias + column) : 0.0f;
#pragma unroll
      for (int i = 0; i < kRows; ++i) sums[i][t] += value;
    }
  }

  template <class Out>
  __device__ __forceinline__ void StoreTo(Out* y, int32_t first_row, int32_t first_col,
                                          const KernelArgs& args) const {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int32_t row = first_row + chunk * kChunkStride;
      if (args.result_feature_major) {
#pragma unroll
        for (int t = 0; t < kCols; ++t) {
          float column[kChunkRows];
#pragma unroll
          for (int i = 0; i < kChunkRows; ++i) column[i] = sums[chunk * kChunkRows + i][t];
          if (first_col + t < args.cols) {
            StoreVector(y + int64_t{first_col + t} * args.rows + row, column, args.rows - row,
                        args.result_vector);
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < kChunkRows; ++i) {
          if (row + i < args.rows) {
            StoreVector(y + int64_t{row + i} * args.cols + first_col, sums[chunk * kChunkRows + i],
                        args.cols - first_col, args.result_vector);
          }
        }
      }
    }
  }
};

}  // namespace jax_nm
