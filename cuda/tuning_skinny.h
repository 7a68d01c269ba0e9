// Whether a skinny kernel computes a problem, and how: pure functions in plain C++.
#pragma once

#include <cstdint>
#include <string>

#include "skinny_config.h"
#include "tuning.h"

namespace jax_nm {

// What the kernel needs and the problem does not have; empty if it computes it.
std::string SkinnyReason(const Problem& p, KernelId kernel);

// The fastest configuration of a kernel for a problem that it computes, with verdict kChosen and
// the estimated cycles of a launch, to be compared with those of the other kernels. If none fits
// into shared memory, the smallest one with verdict kSharedMemory.
Candidate BestSkinny(const Problem& p, const Device& device, const KernelInfo& kernel,
                     int64_t workspace_bytes);

// Of the multiprocessors those that blocks in such clusters reach.
int32_t SkinnySms(const Device& device, int32_t cluster);

// Blocks of a configuration that one of them holds, by shared memory and the registers of a thread.
int32_t SkinnyResident(const Device& device, const Config& c, int32_t registers);

}  // namespace jax_nm
