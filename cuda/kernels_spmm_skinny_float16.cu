#include "skinny_tables.cuh"

namespace jax_nm {

KernelTable SpmmSkinnyFloat16() { return SkinnyTable<__half>(); }

}  // namespace jax_nm
