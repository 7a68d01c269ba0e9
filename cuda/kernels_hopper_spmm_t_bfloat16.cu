#include "hopper_scatter_tables.cuh"

namespace jax_nm {
namespace {

template <class Out>
KernelTable Table() {
  return HopperScatterTable<__nv_bfloat16, Out, HopperScatter128, HopperScatter64, HopperScatter32,
                            HopperScatter16, HopperScatter128HiLo, HopperScatter64HiLo,
                            HopperScatter32HiLo, HopperScatter16HiLo>();
}

}  // namespace

KernelTable HopperSpmmTBFloat16(bool float_result) {
  return float_result ? Table<float>() : Table<__nv_bfloat16>();
}

}  // namespace jax_nm
