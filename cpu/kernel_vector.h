// Vectors of kVectorBytes bytes on the compiler's vector extension: loads and stores that convert,
// transposition, sums across lanes. Included by the kernel_<isa>.cc files only.
//
// Everything a kernel file instantiates lives in an unnamed namespace and uses no code of the
// standard library: a function with external linkage that was compiled for AVX-512 could otherwise
// be the copy that the linker keeps for every CPU.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "problem.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if !defined(JAX_NM_VECTOR_BYTES) || !defined(JAX_NM_PANEL_VECTORS)
#error "define JAX_NM_VECTOR_BYTES and JAX_NM_PANEL_VECTORS before including a kernel header"
#endif

// Register blocks are arrays of vectors: they live in registers only if every loop over them is
// unrolled.
#if defined(__clang__)
#define JAX_NM_UNROLL _Pragma("unroll")
#else
#define JAX_NM_UNROLL _Pragma("GCC unroll 16")
#endif
#define JAX_NM_INLINE inline __attribute__((always_inline))

namespace jax_nm {
namespace {

constexpr int kVectorBytes = JAX_NM_VECTOR_BYTES;
constexpr int kPanelVectors = JAX_NM_PANEL_VECTORS;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename T, int kBytes>
struct VectorOf;
template <int kBytes>
struct VectorOf<float, kBytes> {
  typedef float Type __attribute__((vector_size(kBytes)));
};
template <int kBytes>
struct VectorOf<double, kBytes> {
  typedef double Type __attribute__((vector_size(kBytes)));
};
template <int kBytes>
struct VectorOf<uint16_t, kBytes> {
  typedef uint16_t Type __attribute__((vector_size(kBytes)));
};
template <int kBytes>
struct VectorOf<uint32_t, kBytes> {
  typedef uint32_t Type __attribute__((vector_size(kBytes)));
};
template <int kBytes>
struct VectorOf<int32_t, kBytes> {
  typedef int32_t Type __attribute__((vector_size(kBytes)));
};
template <int kBytes>
struct VectorOf<int64_t, kBytes> {
  typedef int64_t Type __attribute__((vector_size(kBytes)));
};

template <typename T, int kCount>
using VectorN = typename VectorOf<T, kCount* static_cast<int>(sizeof(T))>::Type;

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
using Vector = VectorN<T, kLanes<T>>;

template <typename To, typename From>
JAX_NM_INLINE To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From), "A bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename V>
JAX_NM_INLINE V LoadRaw(const void* source) {
  V v;
  std::memcpy(&v, source, sizeof(v));
  return v;
}

template <typename V>
JAX_NM_INLINE void StoreRaw(void* target, V v) {
  std::memcpy(target, &v, sizeof(v));
}

// The conversions below take any number of lanes, one included. XLA runs its threads with
// subnormal floats flushed to zero, so none of them passes through a subnormal float.

template <int kCount>
JAX_NM_INLINE VectorN<float, kCount> Widen(VectorN<uint16_t, kCount> bits, BFloat16) {
  using Bits = VectorN<uint32_t, kCount>;
  return BitCast<VectorN<float, kCount>>(
      static_cast<Bits>(__builtin_convertvector(bits, Bits) << 16));
}

template <int kCount>
JAX_NM_INLINE VectorN<float, kCount> Widen(VectorN<uint16_t, kCount> half, Float16) {
#if defined(__AVX512F__)
  if constexpr (kCount == 16) {
    return BitCast<VectorN<float, kCount>>(_mm512_maskz_cvtph_ps(0xffff, BitCast<__m256i>(half)));
  }
#endif
#if defined(__F16C__)
  if constexpr (kCount == 8) {
    return BitCast<VectorN<float, kCount>>(_mm256_cvtph_ps(BitCast<__m128i>(half)));
  }
#elif defined(__aarch64__)
  if constexpr (kCount == 4) {
    return BitCast<VectorN<float, kCount>>(vcvt_f32_f16(BitCast<float16x4_t>(half)));
  }
#endif
  using Bits = VectorN<uint32_t, kCount>;
  using Floats = VectorN<float, kCount>;
  const Bits wide = __builtin_convertvector(half, Bits);
  const Bits magnitude = (wide & 0x7fff) << 13;
  const Bits exponent = magnitude & (0x1fu << 23);
  const Bits normal = magnitude + (112u << 23);
  const Bits special = magnitude + (224u << 23);
  // A subnormal half is a fraction of 2^-14: give it that exponent, then take the one back.
  const Bits subnormal =
      BitCast<Bits>(BitCast<Floats>(static_cast<Bits>(magnitude + (113u << 23))) - 0x1p-14f);
  const Bits finite = exponent == 0 ? subnormal : normal;
  const Bits bits = exponent == (0x1fu << 23) ? special : finite;
  return BitCast<Floats>(static_cast<Bits>(bits | ((wide & 0x8000) << 16)));
}

template <int kCount>
JAX_NM_INLINE VectorN<uint16_t, kCount> Narrow(VectorN<float, kCount> v, BFloat16) {
  using Bits = VectorN<uint32_t, kCount>;
  const Bits bits = BitCast<Bits>(v);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits nan = (bits >> 16) | 0x40;
  const Bits chosen = (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
  return __builtin_convertvector(chosen, VectorN<uint16_t, kCount>);
}

template <int kCount>
JAX_NM_INLINE VectorN<uint16_t, kCount> Narrow(VectorN<float, kCount> v, Float16) {
#if defined(__AVX512F__)
  if constexpr (kCount == 16) {
    return BitCast<VectorN<uint16_t, kCount>>(
        _mm512_maskz_cvtps_ph(0xffff, BitCast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
#if defined(__F16C__)
  if constexpr (kCount == 8) {
    return BitCast<VectorN<uint16_t, kCount>>(
        _mm256_cvtps_ph(BitCast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__aarch64__)
  if constexpr (kCount == 4) {
    return BitCast<VectorN<uint16_t, kCount>>(vcvt_f16_f32(BitCast<float32x4_t>(v)));
  }
#endif
  using Bits = VectorN<uint32_t, kCount>;
  using Floats = VectorN<float, kCount>;
  const Bits bits = BitCast<Bits>(v);
  const Bits magnitude = bits & 0x7fffffff;
  const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the multiples of 2^-24, the subnormal halves, in the low mantissa bits.
  const Bits subnormal = BitCast<Bits>(BitCast<Floats>(magnitude) + 0.5f) - (126u << 23);
  const Bits nan = Bits{} + 0x7e00;
  const Bits infinity = Bits{} + 0x7c00;
  const Bits finite = magnitude < (113u << 23) ? subnormal : normal;
  const Bits special = magnitude > 0x7f800000 ? nan : infinity;
  const Bits chosen = magnitude >= (143u << 23) ? special : finite;
  return __builtin_convertvector(static_cast<Bits>(chosen | ((bits >> 16) & 0x8000)),
                                 VectorN<uint16_t, kCount>);
}

// kCount elements of storage type S as a vector of compute type T, and back with one rounding.
template <typename T, int kCount, typename S>
JAX_NM_INLINE VectorN<T, kCount> Load(const S* source) {
  if constexpr (sizeof(S) == 2) {
    return Widen<kCount>(LoadRaw<VectorN<uint16_t, kCount>>(source), S{});
  } else {
    static_assert(sizeof(S) == sizeof(T), "float and double are computed as they are stored");
    return LoadRaw<VectorN<T, kCount>>(source);
  }
}

template <typename T, int kCount, typename S>
JAX_NM_INLINE void Store(S* target, VectorN<T, kCount> v) {
  if constexpr (sizeof(S) == 2) {
    StoreRaw(target, Narrow<kCount>(v, S{}));
  } else {
    static_assert(sizeof(S) == sizeof(T), "float and double are computed as they are stored");
    StoreRaw(target, v);
  }
}

template <typename T>
JAX_NM_INLINE Vector<T> Load(const T* source) {
  return LoadRaw<Vector<T>>(source);
}

JAX_NM_INLINE void Prefetch(const void* address) { __builtin_prefetch(address); }

// The lanes of `a` and `b` with bit kBit clear (kHigh: set), b's in the places where it is set.
template <typename T, int kBit, bool kHigh, int... kLane>
JAX_NM_INLINE Vector<T> Interleave(Vector<T> a, Vector<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = kLanes<T>;
#if defined(__clang__)
  return __builtin_shufflevector(
      a, b, ((kLane & kBit) ? kCount + kLane - (kHigh ? 0 : kBit) : kLane + (kHigh ? kBit : 0))...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b,
                           Vector<Index>{((kLane & kBit) ? kCount + kLane - (kHigh ? 0 : kBit)
                                                         : kLane + (kHigh ? kBit : 0))...});
#endif
}

template <typename T, int kBit, bool kHigh>
JAX_NM_INLINE Vector<T> Interleave(Vector<T> a, Vector<T> b) {
  return Interleave<T, kBit, kHigh>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}

// Transposes a square of vectors in log2(lanes) steps, each of which swaps one bit of the row
// number with that bit of the lane number.
template <typename T, int kBit = 1>
JAX_NM_INLINE void Transpose(Vector<T>* v) {
  if constexpr (kBit < kLanes<T>) {
    JAX_NM_UNROLL
    for (int i = 0; i < kLanes<T>; ++i) {
      if ((i & kBit) == 0) {
        const Vector<T> low = Interleave<T, kBit, false>(v[i], v[i + kBit]);
        v[i + kBit] = Interleave<T, kBit, true>(v[i], v[i + kBit]);
        v[i] = low;
      }
    }
    Transpose<T, 2 * kBit>(v);
  }
}

// Lane i of the result is the sum over the lanes of v[i]: the same steps, adding instead of keeping
// both halves, take lanes - 1 additions for all the sums together.
template <typename T, int kBit = 1>
JAX_NM_INLINE Vector<T> SumLanes(Vector<T>* v) {
  if constexpr (kBit < kLanes<T>) {
    JAX_NM_UNROLL
    for (int i = 0; i < kLanes<T>; i += 2 * kBit) {
      v[i] = Interleave<T, kBit, false>(v[i], v[i + kBit]) +
             Interleave<T, kBit, true>(v[i], v[i + kBit]);
    }
    return SumLanes<T, 2 * kBit>(v);
  } else {
    return v[0];
  }
}

}  // namespace
}  // namespace jax_nm
