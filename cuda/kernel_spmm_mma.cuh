// spmm on the tensor cores of a warp (mma.sync), for sm_80 and newer:
//
//   y[r, c] = sum over kept slots j of  x[r, source(g, j)] * values[j, c],   g = c / L.
//
// Four warps of a block copy (spmm_mma_copier.cuh), four multiply (spmm_mma_multiplier.cuh), one of
// each on every scheduler of a multiprocessor. A product wants 16 rows of x for 16 slots; the slots
// of a group are gathered on the way from shared memory to registers: in half precision ldmatrix
// takes an address for each slot, in float32 (TF32) each lane reads the slots of its own fragment.
// A warp holds the sums of 64 or 128 rows by 64 or 32 columns, or of 32 by 32. What is read next
// is on its way while the last is multiplied.
#pragma once

#include "ptx_hopper.cuh"
#include "spmm_mma_copier.cuh"
#include "spmm_mma_multiplier.cuh"
#include "spmm_mma_writer.cuh"

namespace jax_nm {

template <class Traits>
__global__ void __launch_bounds__(Traits::Tile::kThreads + kMmaCopyThreads,
                                  kMmaMovesRegisters ? kMmaBlocks : Traits::Tile::kMinBlocks)
    SpmmMmaKernel(const __grid_constant__ KernelArgs args) {
  constexpr int kThreads = Traits::Tile::kThreads + kMmaCopyThreads;
  constexpr bool kMoves = kMmaMovesRegisters && Traits::Tile::kMinBlocks < kMmaBlocks;
  extern __shared__ __align__(128) unsigned char mma_shared[];
  if (threadIdx.x == 0) SpmmMmaStages<Traits>(args, mma_shared).InitBarriers();
  __syncthreads();
  if (threadIdx.x < Traits::Tile::kThreads) {
    TestDelay();
    if constexpr (kMoves) ptx::IncreaseRegisters<kMmaMultiplyRegisters>();
    SpmmMmaMultiplier<Traits> multiplier(args, mma_shared);
    multiplier.Run();
    multiplier.WritePieces(mma_shared);
    if constexpr (kMoves) ptx::DecreaseRegisters<kMmaRegisters>();
    ptx::NamedBarrierSync(0, kThreads);
  } else {
    TestDelay();
    if constexpr (kMoves) ptx::DecreaseRegisters<kMmaCopyRegisters>();
    SpmmMmaCopier<Traits>(args, mma_shared).Run();
    // Behind this the registers are there. Taken back before, they could be those that a warp still
    // waits for that has not begun to multiply.
    ptx::NamedBarrierSync(0, kThreads);
    if constexpr (kMoves) ptx::IncreaseRegisters<kMmaRegisters>();
  }
  SpmmMmaWriter<Traits>(args, mma_shared).Run(mma_shared);
}

}  // namespace jax_nm
