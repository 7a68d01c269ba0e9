// One wrapper per instruction that sm_90a adds; kernels contain no asm. Shared memory is named by
// 32-bit addresses here, because descriptors are made of them.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "ptx.cuh"
#include "ptx_barrier.cuh"
#include "ptx_cluster.cuh"

namespace jax_nm::ptx {

// ---- Barriers in shared memory ----

// Makes initialised barriers visible to bulk copies.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Arrives and makes the phase wait for `bytes` of bulk copies.
__device__ __forceinline__ void BarrierArriveExpect(uint32_t barrier, int32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// ---- Register budgets ----

// https://docs.nvidia.com/cuda/parallel-thread-execution/#miscellaneous-instructions-setmaxnreg
template <int kRegisters>
__device__ __forceinline__ void IncreaseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void DecreaseRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- Copies ----

// Copies 16 bytes, or writes 16 zero bytes and reads nothing if `ignore`.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async
__device__ __forceinline__ void CopyAsync16OrZero(uint32_t shared, const void* global,
                                                  bool ignore) {
  asm volatile(
      "{\n"
      ".reg .pred ignore;\n"
      "setp.ne.b32 ignore, %2, 0;\n"
      "cp.async.cg.shared.global [%0], [%1], 16, ignore;\n"
      "}" ::"r"(shared),
      "l"(global), "r"(static_cast<int32_t>(ignore))
      : "memory");
}

// Orders this thread's earlier writes to shared memory, those of finished cp.async included, before
// reads by wgmma and bulk copies that are synchronised with it.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar
__device__ __forceinline__ void FenceProxyAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-prefetch-prefetchu
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Copies a box of a rank-3 tensor to shared memory; coordinates from the contiguous axis outwards.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
__device__ __forceinline__ void LoadBox(uint32_t shared, const CUtensorMap* map, uint32_t barrier,
                                        int32_t x, int32_t y, int32_t z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// Copies a box from shared memory; what lies outside of the tensor is not written.
__device__ __forceinline__ void StoreBox(const CUtensorMap* map, uint32_t shared, int32_t x,
                                         int32_t y, int32_t z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(shared), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-commit-group
__device__ __forceinline__ void CommitStores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until all but the newest kPending groups of this thread's stores have read their shared
// memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-wait-group
template <int kPending>
__device__ __forceinline__ void WaitStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Waits until all of this thread's stores are complete.
__device__ __forceinline__ void WaitStores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// A thread's share of four 8 x 8 matrices of 16-bit elements.
struct FourMatrices {
  uint32_t pairs[4];
};

// Writes four 8 x 8 matrices of 16-bit elements: thread i of the warp names line i % 8 of matrix
// i / 8 and holds, of each matrix, the pair at line i / 4, columns 2 (i % 4) and up.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-stmatrix
__device__ __forceinline__ void StoreMatrices(uint32_t shared, const FourMatrices& m) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
      "r"(m.pairs[0]), "r"(m.pairs[1]), "r"(m.pairs[2]), "r"(m.pairs[3])
      : "memory");
}
// The same with each matrix transposed: the lines in memory are its columns.
__device__ __forceinline__ void StoreMatricesTransposed(uint32_t shared, const FourMatrices& m) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
      "r"(m.pairs[0]), "r"(m.pairs[1]), "r"(m.pairs[2]), "r"(m.pairs[3])
      : "memory");
}

__device__ __forceinline__ void StoreShared(uint32_t shared, float a) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared), "f"(a) : "memory");
}
__device__ __forceinline__ void StoreShared(uint32_t shared, uint16_t a) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(shared), "h"(a) : "memory");
}
__device__ __forceinline__ void StoreShared(uint32_t shared, float a, float b) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(a), "f"(b) : "memory");
}
__device__ __forceinline__ void StoreShared(uint32_t shared, const float4& v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}

// ---- wgmma ----

// Describes an operand of lines of 64 elements with the 128-byte swizzle, 1024 bytes from 8 lines
// to the next 8. Where M or N is contiguous, `slab_bytes` lead from one 64 of it to the next; where
// the reduction is, they have no meaning.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-shared-memory-layout
constexpr uint64_t kDescriptorSwizzle128 = uint64_t{1} << 62;
__device__ __forceinline__ uint64_t Descriptor(uint32_t shared, uint32_t slab_bytes) {
  constexpr uint32_t kEightLines = 1024;
  return kDescriptorSwizzle128 | uint64_t{kEightLines >> 4} << 32 |
         uint64_t{slab_bytes >> 4} << 16 | (shared & 0x3FFFF) >> 4;
}

// The same for lines of 32 elements with the 64-byte swizzle, 512 bytes from 8 lines to the next 8.
constexpr uint64_t kDescriptorSwizzle64 = uint64_t{2} << 62;
__device__ __forceinline__ uint64_t DescriptorOfHalfLines(uint32_t shared, uint32_t slab_bytes) {
  constexpr uint32_t kEightLines = 512;
  return kDescriptorSwizzle64 | uint64_t{kEightLines >> 4} << 32 | uint64_t{slab_bytes >> 4} << 16 |
         (shared & 0x3FFFF) >> 4;
}

// Orders earlier uses of accumulators and shared memory before the wgmmas that follow.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-fence
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// No instruction: keeps the compiler from moving uses of an accumulator across this point.
template <int kCount>
__device__ __forceinline__ void PinRegisters(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void PinRegisters(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// Names of the accumulators in the instruction and, below, the registers that they are.
// clang-format off
#define JAX_NM_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define JAX_NM_NAMES_16 JAX_NM_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define JAX_NM_NAMES_0_31 JAX_NM_NAMES_16 ", " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define JAX_NM_NAMES_32_63 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define JAX_NM_NAMES_64_127 \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// clang-format on
#define JAX_NM_SUMS_8(i)                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define JAX_NM_NEW_8(i)                                                                       \
  "=f"(d[i]), "=f"(d[i + 1]), "=f"(d[i + 2]), "=f"(d[i + 3]), "=f"(d[i + 4]), "=f"(d[i + 5]), \
      "=f"(d[i + 6]), "=f"(d[i + 7])
#define JAX_NM_NEW_16(i) JAX_NM_NEW_8(i), JAX_NM_NEW_8(i + 8)
#define JAX_NM_NEW_32(i) JAX_NM_NEW_16(i), JAX_NM_NEW_16(i + 16)
#define JAX_NM_NEW_64(i) JAX_NM_NEW_32(i), JAX_NM_NEW_32(i + 32)
#define JAX_NM_SUMS_16(i) JAX_NM_SUMS_8(i), JAX_NM_SUMS_8(i + 8)
#define JAX_NM_SUMS_32(i) JAX_NM_SUMS_16(i), JAX_NM_SUMS_16(i + 16)
#define JAX_NM_SUMS_64(i) JAX_NM_SUMS_32(i), JAX_NM_SUMS_32(i + 32)
#define JAX_NM_SUMS_128(i) JAX_NM_SUMS_64(i), JAX_NM_SUMS_64(i + 64)
#define JAX_NM_NAMES_32 JAX_NM_NAMES_0_31
#define JAX_NM_NAMES_64 JAX_NM_NAMES_32 ", " JAX_NM_NAMES_32_63
#define JAX_NM_NAMES_128 JAX_NM_NAMES_64 ", " JAX_NM_NAMES_64_127

// d = a b, or d += a b if `accumulate`, for 64 x N sums d.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-mma
#define JAX_NM_WGMMA(T, NAME, MAJOR, TRANSPOSED, N, COUNT, A, B, ACCUMULATE)                       \
  __device__ __forceinline__ void Wgmma(OperandTag<T, MAJOR>, float (&d)[COUNT], uint64_t a,       \
                                        uint64_t b, bool accumulate) {                             \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " ACCUMULATE                  \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME             \
                 " {" JAX_NM_NAMES_##COUNT "}, " A ", " B ", accumulate, 1, 1, " TRANSPOSED ";\n}" \
                 : JAX_NM_SUMS_##COUNT(0)                                                          \
                 : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));                         \
  }

// Which axis of both operands is contiguous in memory.
struct MnMajor {};     // M of a, N of b
struct KMajor {};      // the reduction
struct MAndKMajor {};  // M of a, the reduction of b

// Chooses the instruction for operands; carries nothing.
template <class T, class Major>
struct OperandTag {};

#define JAX_NM_WGMMA_WIDTHS(T, NAME, MAJOR, TRANSPOSED)                  \
  JAX_NM_WGMMA(T, NAME, MAJOR, TRANSPOSED, 64, 32, "%32", "%33", "%34")  \
  JAX_NM_WGMMA(T, NAME, MAJOR, TRANSPOSED, 128, 64, "%64", "%65", "%66") \
  JAX_NM_WGMMA(T, NAME, MAJOR, TRANSPOSED, 256, 128, "%128", "%129", "%130")

JAX_NM_WGMMA_WIDTHS(__nv_bfloat16, "bf16", MnMajor, "1, 1")
JAX_NM_WGMMA_WIDTHS(__half, "f16", MnMajor, "1, 1")
JAX_NM_WGMMA_WIDTHS(__nv_bfloat16, "bf16", KMajor, "0, 0")
JAX_NM_WGMMA_WIDTHS(__half, "f16", KMajor, "0, 0")

#undef JAX_NM_WGMMA_WIDTHS

// In TF32, which always has the reduction contiguous in both operands.
#define JAX_NM_WGMMA_TF32(N, COUNT, A, B, ACCUMULATE)                                             \
  __device__ __forceinline__ void Wgmma(OperandTag<float, KMajor>, float (&d)[COUNT], uint64_t a, \
                                        uint64_t b, bool accumulate) {                            \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " ACCUMULATE                 \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                                     \
                 "k8.f32.tf32.tf32"                                                               \
                 " {" JAX_NM_NAMES_##COUNT "}, " A ", " B ", accumulate, 1, 1;\n}"                \
                 : JAX_NM_SUMS_##COUNT(0)                                                         \
                 : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));                        \
  }

JAX_NM_WGMMA_TF32(64, 32, "%32", "%33", "%34")
JAX_NM_WGMMA_TF32(128, 64, "%64", "%65", "%66")
JAX_NM_WGMMA_TF32(256, 128, "%128", "%129", "%130")
#undef JAX_NM_WGMMA_TF32

// d = a b: what d held before is neither read nor kept.
#define JAX_NM_WGMMA_FIRST(T, NAME, MAJOR, TRANSPOSED, N, COUNT, A, B)                            \
  __device__ __forceinline__ void WgmmaFirst(OperandTag<T, MAJOR>, float (&d)[COUNT], uint64_t a, \
                                             uint64_t b) {                                        \
    asm volatile(                                                                                 \
        "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, 0, 0;\n"                              \
        "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" JAX_NM_NAMES_##COUNT \
        "}, " A ", " B ", accumulate, 1, 1, " TRANSPOSED ";\n}"                                   \
        : JAX_NM_NEW_##COUNT(0)                                                                   \
        : "l"(a), "l"(b));                                                                        \
  }

JAX_NM_WGMMA_FIRST(__nv_bfloat16, "bf16", MAndKMajor, "1, 0", 16, 8, "%8", "%9")
JAX_NM_WGMMA_FIRST(__nv_bfloat16, "bf16", MAndKMajor, "1, 0", 32, 16, "%16", "%17")
JAX_NM_WGMMA_FIRST(__nv_bfloat16, "bf16", MAndKMajor, "1, 0", 64, 32, "%32", "%33")
JAX_NM_WGMMA_FIRST(__nv_bfloat16, "bf16", MAndKMajor, "1, 0", 128, 64, "%64", "%65")
JAX_NM_WGMMA_FIRST(__half, "f16", MAndKMajor, "1, 0", 16, 8, "%8", "%9")
JAX_NM_WGMMA_FIRST(__half, "f16", MAndKMajor, "1, 0", 32, 16, "%16", "%17")
JAX_NM_WGMMA_FIRST(__half, "f16", MAndKMajor, "1, 0", 64, 32, "%32", "%33")
JAX_NM_WGMMA_FIRST(__half, "f16", MAndKMajor, "1, 0", 128, 64, "%64", "%65")
#undef JAX_NM_WGMMA_FIRST

JAX_NM_WGMMA(__nv_bfloat16, "bf16", MAndKMajor, "1, 0", 16, 8, "%8", "%9", "%10")
JAX_NM_WGMMA(__nv_bfloat16, "bf16", MAndKMajor, "1, 0", 32, 16, "%16", "%17", "%18")
JAX_NM_WGMMA(__nv_bfloat16, "bf16", MAndKMajor, "1, 0", 64, 32, "%32", "%33", "%34")
JAX_NM_WGMMA(__nv_bfloat16, "bf16", MAndKMajor, "1, 0", 128, 64, "%64", "%65", "%66")
JAX_NM_WGMMA(__half, "f16", MAndKMajor, "1, 0", 16, 8, "%8", "%9", "%10")
JAX_NM_WGMMA(__half, "f16", MAndKMajor, "1, 0", 32, 16, "%16", "%17", "%18")
JAX_NM_WGMMA(__half, "f16", MAndKMajor, "1, 0", 64, 32, "%32", "%33", "%34")
JAX_NM_WGMMA(__half, "f16", MAndKMajor, "1, 0", 128, 64, "%64", "%65", "%66")

// The same with a in registers, 64 x 16 as a thread holds the sums of an m64n16, rounded in pairs;
// N is contiguous in b. In TF32 a is 64 x 8, and the reduction is contiguous: of lines lane / 4 and
// lane / 4 + 8 of the warp's 16 a lane holds element lane % 4, then of both element lane % 4 + 4.
#define JAX_NM_WGMMA_REGISTERS(T, NAME, MAJOR, K, TRANSPOSED, N, COUNT, A, B, ACCUMULATE)          \
  __device__ __forceinline__ void WgmmaRegisters(OperandTag<T, MAJOR>, float (&d)[COUNT],          \
                                                 const uint32_t (&a)[4], uint64_t b,               \
                                                 bool accumulate) {                                \
    asm volatile("{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " ACCUMULATE                  \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N K ".f32." NAME "." NAME              \
                 " {" JAX_NM_NAMES_##COUNT "}, {" A "}, " B ", accumulate, 1, 1" TRANSPOSED ";\n}" \
                 : JAX_NM_SUMS_##COUNT(0)                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                             \
                   "r"(static_cast<int32_t>(accumulate)));                                         \
  }
#define JAX_NM_WGMMA_REGISTERS_BF16(N, COUNT, A, B, ACCUMULATE) \
  JAX_NM_WGMMA_REGISTERS(__nv_bfloat16, "bf16", MnMajor, "k16", ", 1", N, COUNT, A, B, ACCUMULATE)
#define JAX_NM_WGMMA_REGISTERS_TF32(N, COUNT, A, B, ACCUMULATE) \
  JAX_NM_WGMMA_REGISTERS(float, "tf32", KMajor, "k8", "", N, COUNT, A, B, ACCUMULATE)

JAX_NM_WGMMA_REGISTERS_BF16(32, 16, "%16, %17, %18, %19", "%20", "%21")
JAX_NM_WGMMA_REGISTERS_BF16(64, 32, "%32, %33, %34, %35", "%36", "%37")
JAX_NM_WGMMA_REGISTERS_BF16(128, 64, "%64, %65, %66, %67", "%68", "%69")
JAX_NM_WGMMA_REGISTERS_BF16(256, 128, "%128, %129, %130, %131", "%132", "%133")
JAX_NM_WGMMA_REGISTERS_TF32(64, 32, "%32, %33, %34, %35", "%36", "%37")
JAX_NM_WGMMA_REGISTERS_TF32(128, 64, "%64, %65, %66, %67", "%68", "%69")

#undef JAX_NM_WGMMA_REGISTERS_TF32
#undef JAX_NM_WGMMA_REGISTERS_BF16
#undef JAX_NM_WGMMA_REGISTERS
#undef JAX_NM_WGMMA
#undef JAX_NM_NAMES_128
#undef JAX_NM_NAMES_64
#undef JAX_NM_NAMES_32
#undef JAX_NM_NAMES_64_127
#undef JAX_NM_NAMES_32_63
#undef JAX_NM_NAMES_0_31
#undef JAX_NM_NAMES_16
#undef JAX_NM_NAMES_8
#undef JAX_NM_SUMS_128
#undef JAX_NM_SUMS_64
#undef JAX_NM_SUMS_32
#undef JAX_NM_SUMS_16
#undef JAX_NM_NEW_64
#undef JAX_NM_NEW_32
#undef JAX_NM_NEW_16
#undef JAX_NM_NEW_8
#undef JAX_NM_SUMS_8

}  // namespace jax_nm::ptx
