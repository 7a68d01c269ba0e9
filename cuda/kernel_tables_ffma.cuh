// The instantiations of spmm in float32 on CUDA cores, by warps that copy and warps that multiply.
#pragma once

#include "kernel_spmm_ffma.cuh"
#include "kernels.h"

namespace jax_nm {

template <Staging kStaging>
const void* SpmmFfmaFunction() {
  return reinterpret_cast<const void*>(
      &SpmmFfmaKernel<SpmmFfmaTraits<SpmmFfmaLarge, kStaging, kFfmaCopyThreads>>);
}

inline KernelTable SpmmFfmaTable() {
  static KernelEntry entries[] = {
      {KernelId::kSpmmFfma128x128Window, kFfmaGroupCols, SpmmFfmaFunction<Staging::kWindow>()},
      {KernelId::kSpmmFfma128x128Gather, kFfmaGroupCols, SpmmFfmaFunction<Staging::kGather>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
