// What the choice is made from: the devices and the kernels that there are.
#include "tuning.h"

namespace jax_nm {

Device DeviceOf(int32_t arch, int32_t num_sms) {
  // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". The SM counts
  // and memory bandwidths are those of A100, A10, L40S, H200, B200 and RTX PRO 6000.
  constexpr Device kDevices[] = {
      {120, 188, 128, 99 << 10, 100 << 10, false, 1024, 700, true},
      {100, 148, 128, 227 << 10, 228 << 10, false, 8192, 4200, true},
      {90, 132, 128, 227 << 10, 228 << 10, true, 4096, 2900, true},
      {89, 142, 128, 99 << 10, 100 << 10, false, 1024, 350, false},
      {86, 72, 128, 99 << 10, 100 << 10, false, 1024, 350, false},
      {80, 108, 64, 163 << 10, 164 << 10, false, 2048, 1430, false},
  };
  for (Device device : kDevices) {
    if (arch < device.arch) continue;
    if (num_sms > 0) device.num_sms = num_sms;
    return device;
  }
  return Device{};
}

const std::vector<KernelInfo>& Kernels() {
  constexpr Staging kWindow = Staging::kWindow, kGather = Staging::kGather;
  static const std::vector<KernelInfo> kernels = {
      {KernelId::kSpmmHopper256x128, "spmm_hopper_256x128", Op::kSpmm, kGather},
      {KernelId::kSpmmHopper128x128, "spmm_hopper_128x128", Op::kSpmm, kGather},
      {KernelId::kSpmmHopper256x64x2, "spmm_hopper_256x64x2", Op::kSpmm, kGather},
      {KernelId::kSpmmHopper128x64x2, "spmm_hopper_128x64x2", Op::kSpmm, kGather},
      {KernelId::kSpmmHopper64x128, "spmm_hopper_64x128", Op::kSpmm, kGather},
      {KernelId::kSpmmHopper64x64x2, "spmm_hopper_64x64x2", Op::kSpmm, kGather},
      {KernelId::kSpmmShort128x256, "spmm_short_128x256", Op::kSpmm, kWindow},
      {KernelId::kSpmmSplit64x256, "spmm_split_64x256", Op::kSpmm, kWindow},
      {KernelId::kSpmmTf32256x128, "spmm_tf32_256x128", Op::kSpmm, kGather},
      {KernelId::kSpmmTf32128x128, "spmm_tf32_128x128", Op::kSpmm, kGather},
      {KernelId::kSpmmTf32256x64x2, "spmm_tf32_256x64x2", Op::kSpmm, kGather},
      {KernelId::kSpmmTf32128x64x2, "spmm_tf32_128x64x2", Op::kSpmm, kGather},
      {KernelId::kSpmmMma128x128Window, "spmm_mma_128x128_window", Op::kSpmm, kWindow},
      {KernelId::kSpmmMma128x128Gather, "spmm_mma_128x128_gather", Op::kSpmm, kGather},
      {KernelId::kSpmmMma64x64Window, "spmm_mma_64x64_window", Op::kSpmm, kWindow},
      {KernelId::kSpmmMma64x64Gather, "spmm_mma_64x64_gather", Op::kSpmm, kGather},
      {KernelId::kSpmmSkinnyBulk8, "spmm_skinny_bulk_8", Op::kSpmm, kWindow},
      {KernelId::kSpmmSkinnyBulk16, "spmm_skinny_bulk_16", Op::kSpmm, kWindow},
      {KernelId::kSpmmSkinnyBulk32, "spmm_skinny_bulk_32", Op::kSpmm, kWindow},
      {KernelId::kSpmmSkinnyBulk64, "spmm_skinny_bulk_64", Op::kSpmm, kWindow},
      {KernelId::kSpmmFfma128x128Window, "spmm_ffma_128x128_window", Op::kSpmm, kWindow},
      {KernelId::kSpmmFfma128x128Gather, "spmm_ffma_128x128_gather", Op::kSpmm, kGather},
      {KernelId::kSpmmSkinny8, "spmm_skinny_8", Op::kSpmm, kWindow},
      {KernelId::kSpmmSkinny16, "spmm_skinny_16", Op::kSpmm, kWindow},
      {KernelId::kSpmmSkinny32, "spmm_skinny_32", Op::kSpmm, kWindow},
      {KernelId::kSpmmSkinny64, "spmm_skinny_64", Op::kSpmm, kWindow},
      {KernelId::kSpmm128x128Window, "spmm_128x128_window", Op::kSpmm, kWindow},
      {KernelId::kSpmm128x128Gather, "spmm_128x128_gather", Op::kSpmm, kGather},
      {KernelId::kSpmm64x64Window, "spmm_64x64_window", Op::kSpmm, kWindow},
      {KernelId::kSpmm64x64Gather, "spmm_64x64_gather", Op::kSpmm, kGather},
      {KernelId::kSpmm32x32Window, "spmm_32x32_window", Op::kSpmm, kWindow},
      {KernelId::kSpmm32x32Gather, "spmm_32x32_gather", Op::kSpmm, kGather},
      {KernelId::kSpmmTHopper128, "spmm_t_hopper_128", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmTHopper64, "spmm_t_hopper_64", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmTHopper32, "spmm_t_hopper_32", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmTHopper16, "spmm_t_hopper_16", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmTHopper128HiLo, "spmm_t_hopper_128_hi_lo", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmTHopper64HiLo, "spmm_t_hopper_64_hi_lo", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmTHopper32HiLo, "spmm_t_hopper_32_hi_lo", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmTHopper16HiLo, "spmm_t_hopper_16_hi_lo", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmT4x16, "spmm_t_4x16", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmT2x16, "spmm_t_2x16", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmT1x16, "spmm_t_1x16", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSpmmT4x8, "spmm_t_4x8", Op::kSpmmT, Staging::kScatter},
      {KernelId::kSddmmHopper256x128, "sddmm_hopper_256x128", Op::kSddmm, kGather},
      {KernelId::kSddmmHopper128x128, "sddmm_hopper_128x128", Op::kSddmm, kGather},
      {KernelId::kSddmmHopper128x64x2, "sddmm_hopper_128x64x2", Op::kSddmm, kGather},
      {KernelId::kSddmmHopper64x128, "sddmm_hopper_64x128", Op::kSddmm, kGather},
      {KernelId::kSddmmHopper64x64x2, "sddmm_hopper_64x64x2", Op::kSddmm, kGather},
      {KernelId::kSddmmSplit64x256, "sddmm_split_64x256", Op::kSddmm, kWindow},
      {KernelId::kSddmmSplit32x256, "sddmm_split_32x256", Op::kSddmm, kWindow},
      {KernelId::kSddmm64x128Window, "sddmm_64x128_window", Op::kSddmm, kWindow},
      {KernelId::kSddmm64x128Gather, "sddmm_64x128_gather", Op::kSddmm, kGather},
      {KernelId::kSddmm32x32Window, "sddmm_32x32_window", Op::kSddmm, kWindow},
      {KernelId::kSddmm32x32Gather, "sddmm_32x32_gather", Op::kSddmm, kGather},
  };
  return kernels;
}

const KernelInfo* FindKernel(KernelId id) {
  for (const KernelInfo& kernel : Kernels()) {
    if (kernel.id == id) return &kernel;
  }
  return nullptr;
}

}  // namespace jax_nm
