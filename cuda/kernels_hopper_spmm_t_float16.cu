#include "hopper_scatter_tables.cuh"

namespace jax_nm {
namespace {

template <class Out>
KernelTable Table() {
  return HopperScatterTable<__half, Out, HopperScatter128HiLo, HopperScatter64HiLo,
                            HopperScatter32HiLo, HopperScatter16HiLo>();
}

}  // namespace

KernelTable HopperSpmmTFloat16(bool float_result) {
  return float_result ? Table<float>() : Table<__half>();
}

}  // namespace jax_nm
