// The instantiations of spmm_t on Hopper for one dtype of operands and one of results.
#pragma once

#include "kernel_hopper_scatter.cuh"
#include "kernels.h"

namespace jax_nm {

template <class T, class Out, class Tile>
KernelEntry HopperScatterEntry() {
  return {Tile::kId, true, reinterpret_cast<const void*>(&HopperScatterKernel<T, Out, Tile>)};
}

template <class T, class Out, class... Tiles>
KernelTable HopperScatterTable() {
  static KernelEntry entries[] = {HopperScatterEntry<T, Out, Tiles>()...};
  return {entries, static_cast<int32_t>(sizeof...(Tiles))};
}

}  // namespace jax_nm
