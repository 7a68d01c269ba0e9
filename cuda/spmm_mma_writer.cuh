// The end of spmm on tensor cores: sums from shared memory to the result, with bias and activation.
#pragma once

#include "activation.cuh"
#include "spmm_mma_multiplier.cuh"
#include "tile_io.cuh"

namespace jax_nm {

// Stores the pieces of all warps of a block; by all of its threads, those that copied too.
template <class Traits>
struct SpmmMmaWriter : SpmmMmaStages<Traits> {
  using Base = SpmmMmaStages<Traits>;
  using Base::args;
  using Base::col0;
  using Base::row0;
  using Base::tile;
  using typename Base::T;
  using typename Base::Tile;
  using Multiplier = SpmmMmaMultiplier<Traits>;
  static constexpr int kVector = 8;                          // elements of a lane
  static constexpr int kLines = 32 / (kMmaPiece / kVector);  // of a warp at once
  static constexpr int kParts = kMmaPiece / kLines;          // of a piece

  using Base::Base;

  __device__ __forceinline__ void Run(const unsigned char* shared) const {
    constexpr int kWarps = (Tile::kThreads + kMmaCopyThreads) / 32;
    constexpr int kCount = Tile::kWarps * Multiplier::kPieces * kParts;
#pragma unroll 1
    for (int number = threadIdx.x / 32; number < kCount; number += kWarps) {
      StoreLines(number / kParts, number % kParts, shared);
    }
  }

  // Lines [part * kLines, ...) of a piece.
  __device__ __forceinline__ void StoreLines(int piece, int part,
                                             const unsigned char* shared) const {
    const Epilogue& epilogue = args.epilogue;
    const int32_t warp = piece / Multiplier::kPieces, number = piece % Multiplier::kPieces;
    const int32_t lane = threadIdx.x % 32;
    const int32_t line = part * kLines + lane / (kMmaPiece / kVector);
    const int32_t place = lane % (kMmaPiece / kVector) * kVector;
    const int32_t row = row0 + Multiplier::WarpRow(warp) +
                        number % Multiplier::kRowPieces * kMmaPiece +
                        (args.result_feature_major ? place : line);
    const int32_t col = col0 + Multiplier::WarpCol(warp) +
                        number / Multiplier::kRowPieces * kMmaPiece +
                        (args.result_feature_major ? line : place);
    if (row >= args.rows || col >= args.cols) return;
    float vector[kVector];
    LoadVector<float>(shared + piece * kMmaPieceBytes + (line * kMmaPieceStride + place) * 4,
                      vector);
    if (epilogue.bias != nullptr) AddBias(epilogue.bias + tile.batch * args.cols, col, vector);
    if (epilogue.sum != nullptr) StoreLine(epilogue.sum, row, col, vector);
    ActivateAll(epilogue.activation, vector);
    StoreLine(args.result, row, col, vector);
  }

  __device__ __forceinline__ void AddBias(const float* bias, int32_t col,
                                          float (&vector)[kVector]) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const int32_t column = args.result_feature_major ? col : min(col + i, args.cols - 1);
      vector[i] += __ldg(bias + column);
    }
  }

  __device__ __forceinline__ void StoreLine(void* matrix, int32_t row, int32_t col,
                                            const float (&vector)[kVector]) const {
    const bool feature_major = args.result_feature_major;
    const int64_t first =
        feature_major ? int64_t{col} * args.rows + row : int64_t{row} * args.cols + col;
    const int32_t available = feature_major ? args.rows - row : args.cols - col;
    StoreTyped<T>(args, tile, int64_t{args.rows} * args.cols, matrix,
                  [&](auto* y) { StoreVector(y + first, vector, available, args.result_vector); });
  }
};

}  // namespace jax_nm
