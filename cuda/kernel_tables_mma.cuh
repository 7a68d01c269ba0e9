// The instantiations of spmm on the tensor cores of a warp for one dtype.
#pragma once

#include "kernel_spmm_mma.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, class Tile, Staging kStaging, int kGroupCols>
const void* SpmmMmaFunction() {
  return reinterpret_cast<const void*>(
      &SpmmMmaKernel<SpmmMmaTraits<T, Tile, kStaging, kGroupCols>>);
}

template <class T>
KernelTable SpmmMmaTable() {
  constexpr Staging kWindow = Staging::kWindow, kGather = Staging::kGather;
  using Large = SpmmMmaLarge<false>;
  using LargeSquare = SpmmMmaLarge<true>;
  using Small = SpmmMmaSmall;
  static KernelEntry entries[] = {
      {KernelId::kSpmmMma128x128Window, 8, SpmmMmaFunction<T, Large, kWindow, 8>()},
      {KernelId::kSpmmMma128x128Window, 16, SpmmMmaFunction<T, Large, kWindow, 16>()},
      {KernelId::kSpmmMma128x128Window, 32, SpmmMmaFunction<T, Large, kWindow, 32>()},
      {KernelId::kSpmmMma128x128Window, 64, SpmmMmaFunction<T, LargeSquare, kWindow, 64>()},
      {KernelId::kSpmmMma128x128Gather, 32, SpmmMmaFunction<T, Large, kGather, 32>()},
      {KernelId::kSpmmMma128x128Gather, 64, SpmmMmaFunction<T, LargeSquare, kGather, 64>()},
      {KernelId::kSpmmMma64x64Window, 8, SpmmMmaFunction<T, Small, kWindow, 8>()},
      {KernelId::kSpmmMma64x64Window, 16, SpmmMmaFunction<T, Small, kWindow, 16>()},
      {KernelId::kSpmmMma64x64Window, 32, SpmmMmaFunction<T, Small, kWindow, 32>()},
      {KernelId::kSpmmMma64x64Gather, 32, SpmmMmaFunction<T, Small, kGather, 32>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
