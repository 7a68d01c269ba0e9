// From matrices in memory to panels and back. A panel holds `features` columns of `width` rows
// each, rows contiguous, in the compute type: every operation then runs its vectors along rows,
// whatever the dtype and the layout of the operands, and any vector length costs the same.
#pragma once

#include "kernel_table.h"
#include "kernel_vector.h"

namespace jax_nm {
namespace {

JAX_NM_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
JAX_NM_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
JAX_NM_INLINE int64_t RoundUp(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// One batch element of a [rows, features] matrix; `stride` steps along the slower axis.
struct Matrix {
  const void* data;
  DType dtype;
  Layout layout;
  int64_t stride;
};

struct MutableMatrix {
  void* data;
  DType dtype;
  Layout layout;
  int64_t stride;
};

struct Range {
  int64_t begin;
  int64_t size;
};

JAX_NM_INLINE Range BlockRange(int64_t block, int64_t block_size, int64_t total) {
  const int64_t begin = block * block_size;
  return {begin, Min(block_size, total - begin)};
}

JAX_NM_INLINE int64_t Width(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Batch element `batch` of a buffer [batch, rows, features].
JAX_NM_INLINE int64_t ByteOffset(DType dtype, int64_t batch, int64_t rows, int64_t features) {
  return batch * rows * features * Width(dtype);
}

JAX_NM_INLINE int64_t Stride(Layout layout, int64_t rows, int64_t features) {
  return layout == Layout::kFeatureMajor ? rows : features;
}

JAX_NM_INLINE Matrix Operand(const void* buffer, DType dtype, Layout layout, int64_t batch,
                             int64_t rows, int64_t features) {
  return {static_cast<const char*>(buffer) + ByteOffset(dtype, batch, rows, features), dtype,
          layout, Stride(layout, rows, features)};
}

JAX_NM_INLINE MutableMatrix Result(void* buffer, DType dtype, Layout layout, int64_t batch,
                                   int64_t rows, int64_t features) {
  return {static_cast<char*>(buffer) + ByteOffset(dtype, batch, rows, features), dtype, layout,
          Stride(layout, rows, features)};
}

// The layout of the same memory seen as [features, rows].
JAX_NM_INLINE Layout Exchange(Layout layout) {
  return layout == Layout::kRowMajor ? Layout::kFeatureMajor : Layout::kRowMajor;
}

// target[i] = source[i] for i < count, zero up to `width`.
template <typename T, typename S>
JAX_NM_INLINE void CopyRun(const S* source, int64_t count, int64_t width, T* target) {
  constexpr int kCount = kLanes<T>;
  int64_t i = 0;
  for (; i + kCount <= count; i += kCount) {
    StoreRaw(target + i, Load<T, kCount>(source + i));
  }
  for (; i < count; ++i) target[i] = Load<T, 1>(source + i)[0];
  for (; i < width; ++i) target[i] = T{};
}

template <typename T, typename S>
void PackFeatureMajor(const S* source, int64_t stride, int64_t rows, int64_t features,
                      int64_t width, T* panel) {
  for (int64_t f = 0; f < features; ++f) {
    CopyRun(source + f * stride, rows, width, panel + f * width);
  }
}

template <typename T, typename S>
void PackRowMajor(const S* source, int64_t stride, int64_t rows, int64_t features, int64_t width,
                  T* panel) {
  constexpr int kCount = kLanes<T>;
  for (int64_t r = 0; r < width; r += kCount) {
    const int64_t valid = Max(0, Min(kCount, Min(rows, width) - r));
    const bool full = r + kCount <= width;
    int64_t f = 0;
    for (; full && f + kCount <= features; f += kCount) {
      Vector<T> block[kCount];
      if (valid == kCount) {
        JAX_NM_UNROLL
        for (int i = 0; i < kCount; ++i) {
          block[i] = Load<T, kCount>(source + (r + i) * stride + f);
        }
      } else {
        JAX_NM_UNROLL
        for (int i = 0; i < kCount; ++i) {
          block[i] = i < valid ? Load<T, kCount>(source + (r + i) * stride + f) : Vector<T>{};
        }
      }
      Transpose<T>(block);
      JAX_NM_UNROLL
      for (int i = 0; i < kCount; ++i) StoreRaw(panel + (f + i) * width + r, block[i]);
    }
    const int64_t lanes = Min(kCount, width - r);
    for (; f < features; ++f) {
      for (int64_t i = 0; i < lanes; ++i) {
        panel[f * width + r + i] = i < valid ? Load<T, 1>(source + (r + i) * stride + f)[0] : T{};
      }
    }
  }
}

template <typename T, typename S>
void PackAs(const Matrix& matrix, Range rows, Range features, int64_t width, T* panel) {
  const S* data = static_cast<const S*>(matrix.data);
  if (matrix.layout == Layout::kFeatureMajor) {
    PackFeatureMajor<T>(data + features.begin * matrix.stride + rows.begin, matrix.stride,
                        rows.size, features.size, width, panel);
  } else {
    PackRowMajor<T>(data + rows.begin * matrix.stride + features.begin, matrix.stride, rows.size,
                    features.size, width, panel);
  }
}

// panel[f * width + r] = matrix[rows.begin + r, features.begin + f], zero for rows.size <= r <
// width.
template <typename T>
void Pack(const Matrix& matrix, Range rows, Range features, int64_t width, T* panel) {
  if constexpr (sizeof(T) == 8) {
    PackAs<T, double>(matrix, rows, features, width, panel);
  } else if (matrix.dtype == DType::kFloat32) {
    PackAs<T, float>(matrix, rows, features, width, panel);
  } else if (matrix.dtype == DType::kBFloat16) {
    PackAs<T, BFloat16>(matrix, rows, features, width, panel);
  } else {
    PackAs<T, Float16>(matrix, rows, features, width, panel);
  }
}

template <typename T, typename S>
void UnpackFeatureMajor(const T* panel, int64_t width, int64_t rows, int64_t features, S* target,
                        int64_t stride) {
  constexpr int kCount = kLanes<T>;
  for (int64_t f = 0; f < features; ++f) {
    const T* from = panel + f * width;
    S* to = target + f * stride;
    int64_t r = 0;
    for (; r + kCount <= rows; r += kCount) Store<T, kCount>(to + r, Load(from + r));
    for (; r < rows; ++r) Store<T, 1>(to + r, LoadRaw<VectorN<T, 1>>(from + r));
  }
}

template <typename T, typename S>
void UnpackRowMajor(const T* panel, int64_t width, int64_t rows, int64_t features, S* target,
                    int64_t stride) {
  constexpr int kCount = kLanes<T>;
  for (int64_t r = 0; r < rows; r += kCount) {
    const int64_t valid = Min(kCount, rows - r);
    int64_t f = 0;
    for (; f + kCount <= features; f += kCount) {
      Vector<T> block[kCount];
      JAX_NM_UNROLL
      for (int i = 0; i < kCount; ++i) block[i] = Load(panel + (f + i) * width + r);
      Transpose<T>(block);
      JAX_NM_UNROLL
      for (int i = 0; i < kCount; ++i) {
        if (i < valid) Store<T, kCount>(target + (r + i) * stride + f, block[i]);
      }
    }
    for (; f < features; ++f) {
      for (int64_t i = 0; i < valid; ++i) {
        Store<T, 1>(target + (r + i) * stride + f,
                    LoadRaw<VectorN<T, 1>>(panel + f * width + r + i));
      }
    }
  }
}

template <typename T, typename S>
void UnpackAs(const T* panel, int64_t width, Range rows, Range features,
              const MutableMatrix& matrix) {
  S* data = static_cast<S*>(matrix.data);
  if (matrix.layout == Layout::kFeatureMajor) {
    UnpackFeatureMajor(panel, width, rows.size, features.size,
                       data + features.begin * matrix.stride + rows.begin, matrix.stride);
  } else {
    UnpackRowMajor(panel, width, rows.size, features.size,
                   data + rows.begin * matrix.stride + features.begin, matrix.stride);
  }
}

// matrix[rows.begin + r, features.begin + f] = panel[f * width + r], rounded once. `width` is a
// multiple of the lanes unless the matrix is feature-major.
template <typename T>
void Unpack(const T* panel, int64_t width, Range rows, Range features,
            const MutableMatrix& matrix) {
  if constexpr (sizeof(T) == 8) {
    UnpackAs<T, double>(panel, width, rows, features, matrix);
  } else if (matrix.dtype == DType::kFloat32) {
    UnpackAs<T, float>(panel, width, rows, features, matrix);
  } else if (matrix.dtype == DType::kBFloat16) {
    UnpackAs<T, BFloat16>(panel, width, rows, features, matrix);
  } else {
    UnpackAs<T, Float16>(panel, width, rows, features, matrix);
  }
}

template <typename T>
JAX_NM_INLINE void Zero(T* target, int64_t count) {
  std::memset(target, 0, static_cast<size_t>(count) * sizeof(T));
}

// Rows of one block as panels of kPanelVectors vectors; the last one may be narrower. `body` gets
// the rows of a panel, its width (a multiple of the lanes) and the padded rows in front of it.
template <typename T, typename Body>
JAX_NM_INLINE void ForEachPanel(Range rows, Body body) {
  constexpr int64_t kPanelRows = kPanelVectors * kLanes<T>;
  for (int64_t done = 0; done < rows.size; done += kPanelRows) {
    const int64_t size = Min(kPanelRows, rows.size - done);
    body(Range{rows.begin + done, size}, RoundUp(size, kLanes<T>), done);
  }
}

// Columns [tile.begin, tile.begin + tile.size) cut where the group changes.
template <typename Body>
JAX_NM_INLINE void ForEachGroup(Range tile, int64_t vector_length, Body body) {
  const int64_t end = tile.begin + tile.size;
  for (int64_t begin = tile.begin; begin < end;) {
    const int64_t group = begin / vector_length;
    const int64_t size = Min((group + 1) * vector_length, end) - begin;
    body(group, Range{begin, size});
    begin += size;
  }
}

// `size` cut into the fewest pieces of at most kMax, as equal as can be.
template <int kMax, typename Body>
JAX_NM_INLINE void ForEachPiece(int64_t size, Body body) {
  int64_t pieces = (size + kMax - 1) / kMax;
  for (int64_t begin = 0; begin < size; --pieces) {
    const int64_t piece = (size - begin + pieces - 1) / pieces;
    body(begin, piece);
    begin += piece;
  }
}

}  // namespace
}  // namespace jax_nm
