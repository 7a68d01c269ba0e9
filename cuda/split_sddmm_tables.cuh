// The instantiations of the kernel for sddmm in float32 by products in bfloat16.
#pragma once

#include "kernel_split_sddmm.cuh"
#include "kernels.h"

namespace jax_nm {

template <KernelId kId, int kSlots, int kGroupCols>
KernelEntry SplitSddmmEntry() {
  return {kId, kGroupCols, reinterpret_cast<const void*>(&SplitSddmmKernel<kSlots, kGroupCols>)};
}

inline KernelTable SplitSddmmTable() {
  constexpr KernelId kLarge = KernelId::kSddmmSplit64x256, kSmall = KernelId::kSddmmSplit32x256;
  static KernelEntry entries[] = {
      SplitSddmmEntry<kLarge, 64, 8>(),  SplitSddmmEntry<kLarge, 64, 16>(),
      SplitSddmmEntry<kLarge, 64, 32>(), SplitSddmmEntry<kSmall, 32, 8>(),
      SplitSddmmEntry<kSmall, 32, 16>(), SplitSddmmEntry<kSmall, 32, 32>()};
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
