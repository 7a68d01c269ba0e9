// Tiles between global memory, shared memory and registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernel_args.h"
#include "ptx.cuh"

namespace jax_nm {

// A [rows, features] matrix in global memory. `vector`: feature-major, 16-byte vectors along rows
// are aligned, and the bytes of a feature fit in 32 bits. A row-major [features, rows] buffer
// (values) is a feature-major matrix.
template <class T>
struct Matrix {
  const T* data;
  int32_t rows;
  int32_t features;
  bool feature_major;
  bool vector;

  __device__ __forceinline__ const T* At(int32_t feature, int32_t row) const {
    return data +
           (feature_major ? int64_t{feature} * rows + row : int64_t{row} * features + feature);
  }
};

// ---- Conversions ----

template <class T>
struct Vec2;
template <>
struct Vec2<__nv_bfloat16> {
  static __device__ __forceinline__ float2 ToFloat(uint32_t bits) {
    return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
  }
  static __device__ __forceinline__ __nv_bfloat16 FromFloat(float v) {
    return __float2bfloat16_rn(v);
  }
};
template <>
struct Vec2<__half> {
  static __device__ __forceinline__ float2 ToFloat(uint32_t bits) {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  }
  static __device__ __forceinline__ __half FromFloat(float v) { return __float2half_rn(v); }
};

template <class T>
__device__ __forceinline__ T Round(float v) {
  if constexpr (sizeof(T) == 4) {
    return v;
  } else {
    return Vec2<T>::FromFloat(v);
  }
}

__device__ __forceinline__ float Widen(float v) { return v; }
__device__ __forceinline__ float Widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float Widen(__half v) { return __half2float(v); }

// kBytes consecutive aligned bytes, in as few instructions as there are.
template <int kBytes>
struct Words;
template <>
struct Words<4> {
  using Type = uint32_t;
};
template <>
struct Words<8> {
  using Type = uint2;
};
template <>
struct Words<16> {
  using Type = uint4;
};

// Reads kCount consecutive elements, aligned as a whole or to 16 bytes, as float32.
template <class T, int kCount>
__device__ __forceinline__ void LoadVector(const void* source, float (&out)[kCount]) {
  constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  if constexpr (kBytes > 16) {
    static_assert(kBytes % 16 == 0, "A long vector must be whole 16-byte vectors");
    constexpr int kPart = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < kCount; i += kPart) {
      float part[kPart];
      LoadVector<T>(static_cast<const unsigned char*>(source) + i * sizeof(T), part);
#pragma unroll
      for (int k = 0; k < kPart; ++k) out[i + k] = part[k];
    }
  } else if constexpr (kBytes < 4) {
    out[0] = Widen(*static_cast<const T*>(source));
  } else {
    const auto vector = *static_cast<const typename Words<kBytes>::Type*>(source);
    uint32_t words[kBytes / 4];
    if constexpr (kBytes == 4) {
      words[0] = vector;
    } else {
      words[0] = vector.x;
      words[1] = vector.y;
    }
    if constexpr (kBytes == 16) {
      words[2] = vector.z;
      words[3] = vector.w;
    }
#pragma unroll
    for (int i = 0; i < kBytes / 4; ++i) {
      if constexpr (sizeof(T) == 4) {
        out[i] = __uint_as_float(words[i]);
      } else {
        const float2 pair = Vec2<T>::ToFloat(words[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
      }
    }
  }
}

// Writes the first `available` of kCount consecutive elements, rounded once.
template <class Out, int kCount>
__device__ __forceinline__ void StoreVector(Out* global, const float (&in)[kCount],
                                            int32_t available, bool vector) {
  constexpr int kBytes = kCount * static_cast<int>(sizeof(Out));
  constexpr int kPartBytes = kBytes < 16 ? kBytes : 16;
  static_assert(kBytes % kPartBytes == 0, "A long vector must be whole 16-byte vectors");
  if constexpr (kPartBytes >= 4) {
    if (vector && available >= kCount) {
      constexpr int kPart = kPartBytes / static_cast<int>(sizeof(Out));
#pragma unroll
      for (int i = 0; i < kCount; i += kPart) {
        union {
          typename Words<kPartBytes>::Type words;
          Out elements[kPart];
        } part = {};
#pragma unroll
        for (int k = 0; k < kPart; ++k) part.elements[k] = Round<Out>(in[i + k]);
        *reinterpret_cast<typename Words<kPartBytes>::Type*>(global + i) = part.words;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < available) global[i] = Round<Out>(in[i]);
  }
}

// Calls `store` with where a matrix of `size` elements begins that the tile is a part of, typed as
// its elements are stored: partial results in float32, results in float32 or the operands' T.
template <class T, class Store>
__device__ __forceinline__ void StoreTyped(const KernelArgs& args, const TileCoordinates& tile,
                                           int64_t size, void* result, Store store) {
  if (args.partials != nullptr) {
    store(args.partials + (tile.split * args.batch + tile.batch) * size);
  } else if (sizeof(T) == 4 || args.result_is_float) {
    store(static_cast<float*>(result) + tile.batch * size);
  } else {
    store(static_cast<T*>(result) + tile.batch * size);
  }
}

// ---- Global to shared ----

template <class T>
__device__ __forceinline__ void CopyElement(T* shared, const T* global, bool valid) {
  if constexpr (sizeof(T) == 4) {
    ptx::CopyAsync4(shared, global, valid ? 4 : 0);
  } else {
    *shared = valid ? *global : Round<T>(0.0f);
  }
}

// Vectors that one thread copies in a row: their table entries are read together, and the compiler
// puts one fence of three empty instructions before a run of copies instead of before each.
constexpr int32_t kCopyBatch = 4;

// StageFeatures where rows are 16-byte vectors: a thread has one place in the rows of the tile and
// takes every (threads / vectors)-th feature, so that a copy costs a load of the table entry (if
// there is one), a comparison and a multiplication. `threads` is a multiple of the vectors in
// `tile_rows`. Nothing is read where a copy is not valid, but its address stays inside the matrix.
template <class T, class FeatureOf>
__device__ __forceinline__ void StageVectors(const Matrix<T>& matrix, int32_t row0,
                                             uint32_t tile_rows, uint32_t threads, int32_t count,
                                             unsigned char* shared, int32_t stride,
                                             FeatureOf feature_of) {
  constexpr uint32_t kVector = 16 / sizeof(T);
  const uint32_t vectors = tile_rows / kVector;
  const int32_t pass = static_cast<int32_t>(threads / vectors);
  const int32_t row = row0 + static_cast<int32_t>(threadIdx.x % vectors * kVector);
  const bool row_valid = row < matrix.rows;
  const T* column = matrix.data + (row_valid ? row : 0);
  const uint32_t pitch = static_cast<uint32_t>(matrix.rows) * static_cast<uint32_t>(sizeof(T));
  int32_t local = static_cast<int32_t>(threadIdx.x / vectors);
  unsigned char* target =
      shared + local * stride + static_cast<int32_t>(threadIdx.x % vectors * 16);
  const auto copy = [&](int32_t feature, unsigned char* to) {
    const uint64_t offset = uint64_t{static_cast<uint32_t>(max(feature, 0))} * pitch;
    ptx::CopyAsync16(to, reinterpret_cast<const unsigned char*>(column) + offset,
                     feature >= 0 && row_valid ? 16 : 0);
  };
#pragma unroll 1
  for (; local + (kCopyBatch - 1) * pass < count; local += kCopyBatch * pass) {
    int32_t features[kCopyBatch];
#pragma unroll
    for (int u = 0; u < kCopyBatch; ++u) features[u] = feature_of(local + u * pass);
#pragma unroll
    for (int u = 0; u < kCopyBatch; ++u) copy(features[u], target + u * pass * stride);
    target += kCopyBatch * pass * stride;
  }
#pragma unroll 1
  for (; local < count; local += pass) {
    copy(feature_of(local), target);
    target += pass * stride;
  }
}

// Stages rows [row0, row0 + tile_rows) of `count` features: shared row i holds feature
// `feature_of(i)`, or zeros if that is negative; rows past the end of the matrix are zeros.
// Asynchronous where the hardware can be; all `threads` of the block take part. `tile_rows` is a
// multiple of 16 bytes of T, and of 4.
template <class T, class FeatureOf>
__device__ __forceinline__ void StageFeatures(const Matrix<T>& matrix, int32_t row0,
                                              int32_t tile_rows, int32_t threads, int32_t count,
                                              unsigned char* shared, int32_t stride,
                                              FeatureOf feature_of) {
  const int32_t thread = threadIdx.x;
  if (matrix.vector) {
    StageVectors(matrix, row0, static_cast<uint32_t>(tile_rows), static_cast<uint32_t>(threads),
                 count, shared, stride, feature_of);
  } else if (matrix.feature_major) {
#pragma unroll 2
    for (int32_t i = thread; i < count * tile_rows; i += threads) {
      const int32_t local = i / tile_rows;
      const int32_t offset = i % tile_rows;
      const int32_t feature = feature_of(local);
      const bool valid = feature >= 0 && row0 + offset < matrix.rows;
      CopyElement(reinterpret_cast<T*>(shared + local * stride) + offset,
                  valid ? matrix.At(feature, row0 + offset) : matrix.data, valid);
    }
  } else {
    // A warp transposes 8 features by 4 rows: whole 32-byte sectors of float32 on one side, 32
    // banks (see PaddedRowBytes) on the other.
    const int32_t row_quads = tile_rows / 4;
#pragma unroll 2
    for (int32_t i = thread; i < RoundUp(count, 8) * tile_rows; i += threads) {
      const int32_t quad = i / 32;
      const int32_t local = quad / row_quads * 8 + i % 8;
      const int32_t offset = quad % row_quads * 4 + i % 32 / 8;
      if (local >= count) continue;
      const int32_t feature = feature_of(local);
      const bool valid = feature >= 0 && row0 + offset < matrix.rows;
      CopyElement(reinterpret_cast<T*>(shared + local * stride) + offset,
                  valid ? matrix.At(feature, row0 + offset) : matrix.data, valid);
    }
  }
}

}  // namespace jax_nm
