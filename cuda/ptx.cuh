// One wrapper per instruction; kernels contain no asm.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jax_nm::ptx {

// What instructions for shared memory call it.
__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Keeps the compiler from computing a value anew where it is used.
__device__ __forceinline__ void KeepInRegister(uint32_t& value) { asm volatile("" : "+r"(value)); }
__device__ __forceinline__ void KeepInRegister(uint64_t& value) { asm volatile("" : "+l"(value)); }

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-ld
// Shared memory by its address. Volatile, because the compiler does not see what it depends on.
__device__ __forceinline__ int32_t LoadShared1(uint32_t address) {
  int32_t byte;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(address));
  return byte;
}
__device__ __forceinline__ uint16_t LoadShared2(uint32_t address) {
  uint16_t half;
  asm volatile("ld.shared.b16 %0, [%1];" : "=h"(half) : "r"(address));
  return half;
}
__device__ __forceinline__ uint32_t LoadShared4(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}
__device__ __forceinline__ uint4 LoadShared16(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address));
  return words;
}
// One, two or four words that are aligned as a whole.
__device__ __forceinline__ void LoadShared(uint32_t address, int32_t (&words)[1]) {
  words[0] = static_cast<int32_t>(LoadShared4(address));
}
__device__ __forceinline__ void LoadShared(uint32_t address, int32_t (&words)[2]) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(address));
}
__device__ __forceinline__ void LoadShared(uint32_t address, int32_t (&words)[4]) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-st
__device__ __forceinline__ void StoreShared2(uint32_t address, uint16_t half) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(half) : "memory");
}
__device__ __forceinline__ void StoreShared4(uint32_t address, int32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async
// Copies `valid_bytes` (0 to 16) from 16-byte aligned `global` and fills the rest of the 16 bytes
// at `shared` with zeros. `.cg`: the data is read once per block, so it bypasses L1.
__device__ __forceinline__ void CopyAsync16(uint32_t shared, const void* global, int valid_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(valid_bytes)
               : "memory");
}
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, int valid_bytes) {
  CopyAsync16(SharedAddress(shared), global, valid_bytes);
}

// As CopyAsync16 for 4 bytes (0 or 4 valid); `.cg` exists for 16 bytes only.
__device__ __forceinline__ void CopyAsync4(uint32_t shared, const void* global, int valid_bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global),
               "r"(valid_bytes)
               : "memory");
}
__device__ __forceinline__ void CopyAsync4(void* shared, const void* global, int valid_bytes) {
  CopyAsync4(SharedAddress(shared), global, valid_bytes);
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-commit-group
__device__ __forceinline__ void CommitGroup() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-wait-group
// Waits until at most kPending of this thread's newest groups are still in flight.
template <int kPending>
__device__ __forceinline__ void WaitGroup() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-st
__device__ __forceinline__ void StoreGlobal16(float* global, const float4& v) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(global), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}

// A barrier of the block by number, for `threads` of its threads.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar
__device__ __forceinline__ void NamedBarrierSync(int32_t number, int32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// 2^x and 1 / x by the special function unit, each one instruction. Subnormal numbers are zeros.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-ex2
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace jax_nm::ptx
