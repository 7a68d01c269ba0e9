// The instantiations of the Hopper kernels for one dtype of operands and one of results.
#pragma once

#include "kernel_hopper.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, class Out, class Tile>
KernelEntry HopperEntry() {
  return {Tile::kId, true, reinterpret_cast<const void*>(&HopperKernel<T, Out, Tile>)};
}

// sddmm in TF32.
inline KernelTable HopperTf32Table() {
  static KernelEntry entries[] = {
      HopperEntry<float, float, HopperTileOf<HopperSddmm256x128, 4>>(),
      HopperEntry<float, float, HopperTileOf<HopperSddmm128x128, 4>>(),
      HopperEntry<float, float, HopperTileOf<HopperSddmm128x64x2, 4>>(),
      HopperEntry<float, float, HopperTileOf<HopperSddmm64x128, 4>>(),
      HopperEntry<float, float, HopperTileOf<HopperSddmm64x64x2, 4>>(),
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

template <class T, class Out>
KernelTable HopperTable() {
  static KernelEntry entries[] = {
      HopperEntry<T, Out, HopperSpmm256x128>(),   HopperEntry<T, Out, HopperSpmm256x64x2>(),
      HopperEntry<T, Out, HopperSpmm128x128>(),   HopperEntry<T, Out, HopperSpmm128x64x2>(),
      HopperEntry<T, Out, HopperSpmm64x128>(),    HopperEntry<T, Out, HopperSpmm64x64x2>(),
      HopperEntry<T, Out, HopperSddmm256x128>(),  HopperEntry<T, Out, HopperSddmm128x128>(),
      HopperEntry<T, Out, HopperSddmm128x64x2>(), HopperEntry<T, Out, HopperSddmm64x128>(),
      HopperEntry<T, Out, HopperSddmm64x64x2>(),
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
