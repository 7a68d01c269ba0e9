// The instantiations of the skinny kernels for one dtype.
#pragma once

#include "kernel_spmm_skinny.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, int kRows, bool kSharedGroup>
const void* SkinnyFunction() {
  return reinterpret_cast<const void*>(&SpmmSkinnyKernel<SkinnyTraits<T, kRows, kSharedGroup>>);
}

template <class T>
KernelTable SkinnyTable() {
  static KernelEntry entries[] = {
      {KernelId::kSpmmSkinny8, 1, SkinnyFunction<T, 8, true>()},
      {KernelId::kSpmmSkinny8, 0, SkinnyFunction<T, 8, false>()},
      {KernelId::kSpmmSkinny16, 1, SkinnyFunction<T, 16, true>()},
      {KernelId::kSpmmSkinny16, 0, SkinnyFunction<T, 16, false>()},
      {KernelId::kSpmmSkinny32, 1, SkinnyFunction<T, 32, true>()},
      {KernelId::kSpmmSkinny32, 0, SkinnyFunction<T, 32, false>()},
      {KernelId::kSpmmSkinny64, 1, SkinnyFunction<T, 64, true>()},
      {KernelId::kSpmmSkinny64, 0, SkinnyFunction<T, 64, false>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
