// The instantiations of the kernel for short vectors for one dtype of operands and one of results.
#pragma once

#include "kernel_short.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, class Out, int kGroupCols>
KernelEntry ShortEntry() {
  return {KernelId::kSpmmShort128x256, kGroupCols,
          reinterpret_cast<const void*>(&ShortKernel<T, Out, kGroupCols>)};
}

template <class T, class Out>
KernelTable ShortTable() {
  static KernelEntry entries[] = {ShortEntry<T, Out, 8>(), ShortEntry<T, Out, 16>(),
                                  ShortEntry<T, Out, 32>()};
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
