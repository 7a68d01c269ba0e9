#include "kernel_tf32.cuh"
#include "kernels.h"

namespace jax_nm {
namespace {

template <class Tile>
KernelEntry Entry() {
  return {Tile::kId, 1, reinterpret_cast<const void*>(&Tf32Kernel<Tile>)};
}

}  // namespace

KernelTable HopperTf32Float32() {
  static KernelEntry entries[] = {Entry<Tf32Spmm256x128>(), Entry<Tf32Spmm128x128>(),
                                  Entry<Tf32Spmm256x64x2>(), Entry<Tf32Spmm128x64x2>()};
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
