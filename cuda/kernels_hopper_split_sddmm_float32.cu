#include "split_sddmm_tables.cuh"

namespace jax_nm {

KernelTable HopperSplitSddmmFloat32() { return SplitSddmmTable(); }

}  // namespace jax_nm
