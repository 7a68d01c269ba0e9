#include "skinny_tables.cuh"

namespace jax_nm {

// A lane's four columns lie in one group in any case, and 64 rows are two tiles of 32.
KernelTable SpmmSkinnyFloat32() {
  static KernelEntry entries[] = {
      {KernelId::kSpmmSkinny8, 1, SkinnyFunction<float, 8, true>()},
      {KernelId::kSpmmSkinny16, 1, SkinnyFunction<float, 16, true>()},
      {KernelId::kSpmmSkinny32, 1, SkinnyFunction<float, 32, true>()},
  };
  return {entries, static_cast<int32_t>(sizeof(entries) / sizeof(entries[0]))};
}

}  // namespace jax_nm
