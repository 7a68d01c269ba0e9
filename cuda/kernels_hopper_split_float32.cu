#include "split_tables.cuh"

namespace jax_nm {

KernelTable HopperSplitFloat32() { return SplitTable(); }

}  // namespace jax_nm
