#include "kernel_hopper_scatter.cuh"
#include "kernels.h"

namespace jax_nm {
namespace {

template <class Out, class Tile>
KernelEntry Entry() {
  return {Tile::kId, true,
          reinterpret_cast<const void*>(&HopperScatterKernel<__nv_bfloat16, Out, Tile>)};
}

template <class Out>
KernelTable Table() {
  static KernelEntry entries[] = {
      Entry<Out, HopperScatter128>(),
      Entry<Out, HopperScatter64>(),
      Entry<Out, HopperScatter32>(),
      Entry<Out, HopperScatter16>(),
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace

KernelTable HopperSpmmTBFloat16(bool float_result) {
  return float_result ? Table<float>() : Table<__nv_bfloat16>();
}

}  // namespace jax_nm
