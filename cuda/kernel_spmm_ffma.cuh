// spmm in float32 on CUDA cores, for sm_80 and newer:
//
//   y[r, c] = sum over kept slots j of  x[r, source(g, j)] * values[j, c],   g = c / L.
//
// Four warps of a block copy (spmm_mma_copier.cuh), four multiply (spmm_ffma_multiplier.cuh) and
// wait for nothing but a stage that is not full. Where registers can be moved, two such blocks
// share a multiprocessor, and each of its schedulers has two warps that multiply.
#pragma once

#include "ptx_hopper.cuh"
#include "spmm_ffma_multiplier.cuh"
#include "spmm_mma_copier.cuh"

namespace jax_nm {

template <class Traits>
__global__ void __launch_bounds__(Traits::Tile::kThreads + Traits::kCopyThreads,
                                  kMmaMovesRegisters ? Traits::Tile::kMinBlocks : 1)
    SpmmFfmaKernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(128) unsigned char ffma_shared[];
  if (threadIdx.x == 0) SpmmMmaStages<Traits>(args, ffma_shared).InitBarriers();
  __syncthreads();
  TestDelay();
  if (threadIdx.x < Traits::Tile::kThreads) {
    if constexpr (kMmaMovesRegisters) ptx::IncreaseRegisters<kMmaMultiplyRegisters>();
    SpmmFfmaMultiplier<Traits> multiplier(args, ffma_shared);
    multiplier.Run();
    multiplier.Store(args, multiplier.tile);
  } else {
    if constexpr (kMmaMovesRegisters) ptx::DecreaseRegisters<kMmaCopyRegisters>();
    SpmmMmaCopier<Traits>(args, ffma_shared).Run();
    // No copy is on its way when the thread ends.
    ptx::CommitGroup();
    ptx::WaitGroup<0>();
  }
}

}  // namespace jax_nm
