#include "skinny_bulk_tables.cuh"

namespace jax_nm {

KernelTable HopperSkinnyBFloat16() { return SkinnyBulkTable<__nv_bfloat16>(); }

}  // namespace jax_nm
