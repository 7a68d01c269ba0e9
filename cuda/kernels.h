// Tables of the compiled kernels, one per operation and dtype, each in its own source so that they
// compile in parallel. A new kernel family adds its rows here and its candidates in tuning.cc.
#pragma once

#include <atomic>
#include <cstdint>

#include "config.h"

namespace jax_nm {

struct KernelEntry {
  KernelId kernel;
  int32_t variant;                    // see VariantOf
  const void* function;               // void(KernelArgs), with a CUtensorMap where values come
                                      // in bulk; of Hopper void(HopperMaps, HopperArgs)
  std::atomic<uint64_t> prepared{0};  // bit d: set up on device d
};

// What a kernel is compiled for besides its tile: whether a thread's columns share a group, or how
// many of a warp's surely do.
constexpr int32_t VariantOf(const Config& c) {
  return c.group_cols > 0 ? c.group_cols : c.shared_group ? 1 : 0;
}

struct KernelTable {
  KernelEntry* entries;
  int32_t count;
};

KernelTable SpmmFloat32();
KernelTable SpmmBFloat16();
KernelTable SpmmFloat16();
KernelTable SpmmMmaFloat32();
KernelTable SpmmMmaBFloat16();
KernelTable SpmmMmaFloat16();
KernelTable SpmmFfmaFloat32();
KernelTable SpmmSkinnyFloat32();
KernelTable SpmmSkinnyBFloat16();
KernelTable SpmmSkinnyFloat16();
KernelTable SpmmTFloat32();
KernelTable SpmmTBFloat16();
KernelTable SpmmTFloat16();
KernelTable SddmmFloat32();
KernelTable SddmmBFloat16();
KernelTable SddmmFloat16();
// In builds for sm_90a.
KernelTable HopperBFloat16(bool float_result);
KernelTable HopperFloat16(bool float_result);
KernelTable HopperFloat32();  // sddmm, in TF32
KernelTable HopperSpmmTBFloat16(bool float_result);
KernelTable HopperSpmmTFloat16(bool float_result);
KernelTable HopperShortBFloat16(bool float_result);
KernelTable HopperShortFloat16(bool float_result);
KernelTable HopperSplitFloat32();
KernelTable HopperSplitSddmmFloat32();
KernelTable HopperTf32Float32();
KernelTable HopperSkinnyBFloat16();
KernelTable HopperSkinnyFloat16();

}  // namespace jax_nm
