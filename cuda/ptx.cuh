// One wrapper per instruction; kernels contain no asm.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace jax_nm::ptx {

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async
// Copies `valid_bytes` (0 to 16) from 16-byte aligned `global` and fills the rest of the 16 bytes
// at `shared` with zeros. `.cg`: the data is read once per block, so it bypasses L1.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, int valid_bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(valid_bytes)
               : "memory");
}

// As CopyAsync16 for 4 bytes (0 or 4 valid); `.cg` exists for 16 bytes only.
__device__ __forceinline__ void CopyAsync4(void* shared, const void* global, int valid_bytes) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global),
               "r"(valid_bytes)
               : "memory");
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

// A barrier of the block by number, for `threads` of its threads.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar
__device__ __forceinline__ void NamedBarrierSync(int32_t number, int32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace jax_nm::ptx
