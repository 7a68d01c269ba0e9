// The instantiations of the Hopper kernel for one dtype of operands and one of results.
#pragma once

#include "kernel_hopper.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, class Out, class Tile>
const void* HopperSpmmFunction() {
  return reinterpret_cast<const void*>(&HopperSpmmKernel<T, Out, Tile>);
}

template <class T, class Out>
KernelTable HopperSpmmTable() {
  static KernelEntry entries[] = {
      {Hopper256x128::kId, true, HopperSpmmFunction<T, Out, Hopper256x128>()},
      {Hopper256x64x2::kId, true, HopperSpmmFunction<T, Out, Hopper256x64x2>()},
      {Hopper128x128::kId, true, HopperSpmmFunction<T, Out, Hopper128x128>()},
      {Hopper128x64x2::kId, true, HopperSpmmFunction<T, Out, Hopper128x64x2>()},
      {Hopper64x128::kId, true, HopperSpmmFunction<T, Out, Hopper64x128>()},
      {Hopper64x64x2::kId, true, HopperSpmmFunction<T, Out, Hopper64x64x2>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
