// A thread's register tile of y: where it lies in the block's, what it reads of a slot, and how it
// is finished and stored. A fused product adds its bias and applies its activation in registers.
#pragma once

#include "activation.cuh"
#include "tile_io.cuh"

namespace jax_nm {

template <class T, class Tile>
struct SpmmSums {
  static constexpr int kRows = Tile::kThreadRows;
  static constexpr int kCols = Tile::kThreadCols;
  static constexpr int kElement = sizeof(T);
  // A thread's rows come in chunks of one 16-byte vector; the chunks of 8 lanes lie side by side.
  static constexpr int kChunkRows = kRows < 16 / kElement ? kRows : 16 / kElement;
  static constexpr int kChunks = kRows / kChunkRows;
  static constexpr int kChunkStride = Tile::kLaneRows * kChunkRows;  // rows between two chunks

  int32_t thread_row, thread_col;  // in the block
  float sums[kRows][kCols];

  __device__ __forceinline__ SpmmSums() {
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    thread_row = warp % Tile::kRowWarps * Tile::kWarpRows + lane % Tile::kLaneRows * kChunkRows;
    thread_col = warp / Tile::kRowWarps * Tile::kWarpCols + lane / Tile::kLaneRows * kCols;
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
