#include "skinny_tables.cuh"

namespace jax_nm {

KernelTable SpmmSkinnyBFloat16() { return SkinnyTable<__nv_bfloat16>(); }

}  // namespace jax_nm
