// The sum of split partial results, in a fixed order, rounded once.
#pragma once

#include <cstdint>

#include "activation.cuh"
#include "tile_io.cuh"

namespace jax_nm {

constexpr int kReduceThreads = 256;

struct ReduceArgs {
  const float* partials;  // [split, elements]
  int32_t split;
  int64_t elements;
  void* result;
  Epilogue epilogue;
  // The matrices of which a fused spmm adds a bias to the columns.
  int64_t rows;
  int64_t cols;
  bool feature_major;
};

// Adds the bias to consecutive elements from `first` on, which may reach into the next line.
template <int kVector>
__device__ __forceinline__ void AddBias(const ReduceArgs& args, int64_t first,
                                        float (&sums)[kVector]) {
  const int64_t length = args.feature_major ? args.rows : args.cols;
  const int64_t line = first / length;
  int64_t place = first % length;
  // Of the bias of the line, or of its first column; a row-major matrix has as many lines as rows.
  int64_t offset = args.feature_major ? line : line / args.rows * args.cols;
  int64_t row = args.feature_major ? 0 : line % args.rows;
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    sums[k] += __ldg(args.epilogue.bias + (args.feature_major ? offset : offset + place));
    if (++place < length) continue;
    place = 0;
    if (args.feature_major) {
      ++offset;
    } else if (++row == args.rows) {
      row = 0;
      offset += args.cols;
    }
  }
}

// kVector consecutive elements for a thread; everything is aligned for that.
template <class Out, int kVector>
__global__ void __launch_bounds__(kReduceThreads)
    ReduceKernel(const __grid_constant__ ReduceArgs args) {
  const int64_t stride = int64_t{gridDim.x} * kReduceThreads * kVector;
  const int64_t first = (int64_t{blockIdx.x} * kReduceThreads + threadIdx.x) * kVector;
  const Epilogue& epilogue = args.epilogue;
  for (int64_t i = first; i < args.elements; i += stride) {
    float sums[kVector] = {};
#pragma unroll 4
    for (int32_t s = 0; s < args.split; ++s) {
      float part[kVector];
      LoadVector<float>(args.partials + s * args.elements + i, part);
#pragma unroll
      for (int k = 0; k < kVector; ++k) sums[k] += part[k];
    }
    if (epilogue.bias != nullptr) AddBias(args, i, sums);
    if (epilogue.sum != nullptr) {
      StoreVector(static_cast<Out*>(epilogue.sum) + i, sums, kVector, kVector > 1);
    }
    ActivateAll(epilogue.activation, sums);
    StoreVector(static_cast<Out*>(args.result) + i, sums, kVector, kVector > 1);
  }
}

}  // namespace jax_nm
