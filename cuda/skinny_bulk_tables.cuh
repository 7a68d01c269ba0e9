// The instantiations of the skinny kernels whose values come in bulk, for one dtype.
#pragma once

#include "kernel_spmm_skinny_bulk.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, int kRows, bool kSharedGroup>
const void* SkinnyBulkFunction() {
  return reinterpret_cast<const void*>(
      &SpmmSkinnyBulkKernel<SkinnyBulkTraits<T, kRows, kSharedGroup>>);
}

template <class T>
KernelTable SkinnyBulkTable() {
  static KernelEntry entries[] = {
      {KernelId::kSpmmSkinnyBulk8, 1, SkinnyBulkFunction<T, 8, true>()},
      {KernelId::kSpmmSkinnyBulk8, 0, SkinnyBulkFunction<T, 8, false>()},
      {KernelId::kSpmmSkinnyBulk16, 1, SkinnyBulkFunction<T, 16, true>()},
      {KernelId::kSpmmSkinnyBulk16, 0, SkinnyBulkFunction<T, 16, false>()},
      {KernelId::kSpmmSkinnyBulk32, 1, SkinnyBulkFunction<T, 32, true>()},
      {KernelId::kSpmmSkinnyBulk32, 0, SkinnyBulkFunction<T, 32, false>()},
      {KernelId::kSpmmSkinnyBulk64, 1, SkinnyBulkFunction<T, 64, true>()},
      {KernelId::kSpmmSkinnyBulk64, 0, SkinnyBulkFunction<T, 64, false>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
