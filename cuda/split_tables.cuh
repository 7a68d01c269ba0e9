// The instantiations of the kernel for float32 by products in bfloat16.
#pragma once

#include "kernel_split.cuh"
#include "kernels.h"

namespace jax_nm {

template <int kGroupCols>
KernelEntry SplitEntry() {
  return {KernelId::kSpmmSplit64x256, kGroupCols,
          reinterpret_cast<const void*>(&SplitKernel<kGroupCols>)};
}

inline KernelTable SplitTable() {
  static KernelEntry entries[] = {SplitEntry<8>(), SplitEntry<16>(), SplitEntry<32>()};
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
