// The end of a skinny kernel: the sums of its groups of warps, and of the blocks of a cluster, are
// added up in shared memory, in their order, and stored.
#pragma once

#include <cstdint>

#include "activation.cuh"
#include "kernel_args.h"
#include "ptx_cluster.cuh"
#include "skinny_config.h"
#include "tile_io.cuh"

namespace jax_nm {

// Adds four sums' bias, activates and stores them.
template <class T>
struct SkinnyStore {
  const KernelArgs& args;
  const TileCoordinates& tile;

  __device__ __forceinline__ void operator()(int32_t row, int32_t column, float4 sum) const {
    float sums[4] = {sum.x, sum.y, sum.z, sum.w};
    const Epilogue& epilogue = args.epilogue;
    if (epilogue.bias != nullptr) {
      const float* bias = epilogue.bias + tile.batch * args.cols;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (column + k < args.cols) sums[k] += __ldg(bias + column + k);
      }
    }
    if (epilogue.sum != nullptr) Write(epilogue.sum, row, column, sums);
    ActivateAll(epilogue.activation, sums);
    Write(args.result, row, column, sums);
  }

  __device__ __forceinline__ void Write(void* matrix, int32_t row, int32_t column,
                                        const float (&sums)[4]) const {
    StoreTyped<T>(args, tile, int64_t{args.rows} * args.cols, matrix, [&](auto* y) {
      if (!args.result_feature_major) {
        StoreVector(y + int64_t{row} * args.cols + column, sums, args.cols - column,
                    args.result_vector);
        return;
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float element[1] = {sums[k]};
        StoreVector(y + int64_t{column + k} * args.rows + row, element, args.cols - column - k,
                    false);
      }
    });
  }
};

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// Adds up the sums of the groups of warps, and of the blocks of a cluster.
template <class T>
struct SkinnyReduction {
  const KernelArgs& args;
  const SkinnySums& layout;
  const TileCoordinates& tile;
  float* shared;
  int32_t rows;  // of the tile that there are

  __device__ __forceinline__ float4* At(int32_t row, int32_t column) const {
    return reinterpret_cast<float4*>(shared + row * layout.pitch + column);
  }

  __device__ __forceinline__ float4 OfGroups(int32_t row, int32_t column) const {
    const float4* from = At(row, column);
    float4 sum = *from;
    for (int32_t group = 1; group < args.config.kept_warps; ++group) {
      from += layout.floats / 4;
      sum = sum + *from;
    }
    return sum;
  }

  // Calls visit(row, column) for the vectors of one of `shares` shares of the tile, in the order of
  // the result, so that a warp stores what is contiguous there.
  template <class Visit>
  __device__ __forceinline__ void ForVectors(int32_t share, int32_t shares, Visit visit) const {
    const int32_t vectors = args.config.block_cols / 4;
    for (int32_t i = share * blockDim.x + threadIdx.x; i < rows * vectors;
         i += shares * blockDim.x) {
      if (args.result_feature_major) {
        visit(i % rows, i / rows * 4);
      } else {
        visit(i / vectors, i % vectors * 4);
      }
    }
  }

  __device__ __forceinline__ void Run(int32_t rank) const {
    const int32_t row0 = tile.outer * args.config.block_rows;
    const int32_t col0 = tile.inner * args.config.block_cols;
    const SkinnyStore<T> store{args, tile};
    const auto emit = [&](int32_t row, int32_t column, const float4& sum) {
      if (col0 + column < args.cols) store(row0 + row, col0 + column, sum);
    };
#if __CUDA_ARCH__ >= 900
    const int32_t cluster = args.config.cluster;
    if (cluster > 1) {
      ForVectors(0, 1,
                 [&](int32_t row, int32_t column) { *At(row, column) = OfGroups(row, column); });
      ptx::ClusterSync();
      ForVectors(rank, cluster, [&](int32_t row, int32_t column) {
        const uint32_t address = ptx::SharedAddress(At(row, column));
        float4 sum = ptx::LoadPeer(ptx::PeerAddress(address, 0));
        for (int32_t peer = 1; peer < cluster; ++peer) {
          sum = sum + ptx::LoadPeer(ptx::PeerAddress(address, peer));
        }
        emit(row, column, sum);
      });
      // A block's shared memory stays until nobody reads it.
      ptx::ClusterSync();
      return;
    }
#endif
    ForVectors(0, 1,
               [&](int32_t row, int32_t column) { emit(row, column, OfGroups(row, column)); });
  }
};

}  // namespace jax_nm
