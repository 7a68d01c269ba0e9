// The instantiations of each kernel for one dtype.
#pragma once

#include "kernel_sddmm.cuh"
#include "kernel_spmm.cuh"
#include "kernel_spmm_t.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, class Tile, Staging kStaging, bool kSharedGroup>
const void* SpmmFunction() {
  return reinterpret_cast<const void*>(&SpmmKernel<SpmmTraits<T, Tile, kStaging, kSharedGroup>>);
}

template <class T>
KernelTable SpmmTable() {
  constexpr Staging kWindow = Staging::kWindow, kGather = Staging::kGather;
  static KernelEntry entries[] = {
      {KernelId::kSpmm128x128Window, 1, SpmmFunction<T, SpmmLarge, kWindow, true>()},
      {KernelId::kSpmm128x128Window, 0, SpmmFunction<T, SpmmLarge, kWindow, false>()},
      {KernelId::kSpmm128x128Gather, 1, SpmmFunction<T, SpmmLarge, kGather, true>()},
      {KernelId::kSpmm64x64Window, 1, SpmmFunction<T, SpmmMedium, kWindow, true>()},
      {KernelId::kSpmm64x64Window, 0, SpmmFunction<T, SpmmMedium, kWindow, false>()},
      {KernelId::kSpmm64x64Gather, 1, SpmmFunction<T, SpmmMedium, kGather, true>()},
      {KernelId::kSpmm32x32Window, 1, SpmmFunction<T, SpmmSmall, kWindow, true>()},
      {KernelId::kSpmm32x32Window, 0, SpmmFunction<T, SpmmSmall, kWindow, false>()},
      {KernelId::kSpmm32x32Gather, 1, SpmmFunction<T, SpmmSmall, kGather, true>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

template <class T, class Tile>
const void* SpmmTFunction() {
  return reinterpret_cast<const void*>(&SpmmTKernel<SpmmTTraits<T, Tile>>);
}

// Sharing a group changes nothing in spmm_t: its threads have rows and slots, not columns.
template <class T>
KernelTable SpmmTTable() {
  static KernelEntry entries[] = {
      {KernelId::kSpmmT4x16, 0, SpmmTFunction<T, SpmmT4x16>()},
      {KernelId::kSpmmT2x16, 0, SpmmTFunction<T, SpmmT2x16>()},
      {KernelId::kSpmmT1x16, 0, SpmmTFunction<T, SpmmT1x16>()},
      {KernelId::kSpmmT4x8, 0, SpmmTFunction<T, SpmmT4x8>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

template <class T, class Tile, bool kSharedGroup>
const void* SddmmFunction() {
  return reinterpret_cast<const void*>(&SddmmKernel<SddmmTraits<T, Tile, kSharedGroup>>);
}

// The staging of sddmm is a run-time choice: it decides addresses outside of the inner loop only.
template <class T>
KernelTable SddmmTable() {
  static KernelEntry entries[] = {
      {KernelId::kSddmm64x128Window, 1, SddmmFunction<T, SddmmLarge, true>()},
      {KernelId::kSddmm64x128Window, 0, SddmmFunction<T, SddmmLarge, false>()},
      {KernelId::kSddmm64x128Gather, 1, SddmmFunction<T, SddmmLarge, true>()},
      {KernelId::kSddmm64x128Gather, 0, SddmmFunction<T, SddmmLarge, false>()},
      {KernelId::kSddmm32x32Window, 1, SddmmFunction<T, SddmmSmall, true>()},
      {KernelId::kSddmm32x32Window, 0, SddmmFunction<T, SddmmSmall, false>()},
      {KernelId::kSddmm32x32Gather, 1, SddmmFunction<T, SddmmSmall, true>()},
      {KernelId::kSddmm32x32Gather, 0, SddmmFunction<T, SddmmSmall, false>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
