#include "skinny_bulk_tables.cuh"

namespace jax_nm {

KernelTable HopperSkinnyFloat16() { return SkinnyBulkTable<__half>(); }

}  // namespace jax_nm
