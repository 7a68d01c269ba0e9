// The kernels of one instruction set as a table of functions.
#pragma once

#include "kernel_sddmm.h"
#include "kernel_spmm.h"
#include "kernel_spmm_skinny.h"
#include "kernel_spmm_t.h"

namespace jax_nm {
namespace {

// float32 is the compute type of every dtype but float64.
template <TaskFunction kFloat, TaskFunction kDouble>
void ByComputeType(const Job& job, int64_t task, void* scratch) {
  if (job.problem.dtype == DType::kFloat64) {
    kDouble(job, task, scratch);
  } else {
    kFloat(job, task, scratch);
  }
}

constexpr KernelTable MakeKernelTable() {
  return {kVectorBytes,
          kPanelVectors,
          ByComputeType<SpmmTask<float>, SpmmTask<double>>,
          ByComputeType<SpmmSkinnyTask<float>, SpmmSkinnyTask<double>>,
          ByComputeType<SpmmTTask<float>, SpmmTTask<double>>,
          ByComputeType<SddmmTask<float>, SddmmTask<double>>};
}

}  // namespace
}  // namespace jax_nm
