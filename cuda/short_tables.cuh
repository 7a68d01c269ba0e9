// The instantiations of the kernels for short vectors for one dtype of operands and one of results.
#pragma once

#include "kernel_spmm_short.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, class Out, class Tile, int kGroupCols>
KernelEntry ShortEntry() {
  return {Tile::kId, kGroupCols,
          reinterpret_cast<const void*>(&ShortKernel<T, Out, Tile, kGroupCols>)};
}

template <class T, class Out>
KernelTable ShortTable() {
  static KernelEntry entries[] = {
      ShortEntry<T, Out, Short128x256, 8>(),  ShortEntry<T, Out, Short128x256, 16>(),
      ShortEntry<T, Out, Short128x256, 32>(), ShortEntry<T, Out, Short64x512, 8>(),
      ShortEntry<T, Out, Short64x512, 16>(),  ShortEntry<T, Out, Short64x512, 32>(),
      ShortEntry<T, Out, Short64x512, 64>(),  ShortEntry<T, Out, Short64x256, 8>(),
      ShortEntry<T, Out, Short64x256, 16>(),  ShortEntry<T, Out, Short64x256, 32>(),
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
