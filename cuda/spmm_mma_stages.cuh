// Where a block of an spmm is whose warps copy or multiply, and how its shared memory is laid out:
// what both have to agree on. On tensor cores of a warp and on CUDA cores alike.
//
// A stage holds the operands of one step: x for some slots (whole windows, or gathered rows) and
// the values of those slots. A table says where each slot's row of x is. Two barriers for each
// stage hand it over: `full` from the warps that copy to those that multiply, `empty` back.
#pragma once

#include <type_traits>

#include "kernel_args.h"
#include "ptx.cuh"

namespace jax_nm {

// Machine code for sm_90a moves registers from the warps that copy to those that multiply, so that
// two blocks, and two warps that multiply for each scheduler, share a multiprocessor: one warp
// starts a product of tensor cores every 9 cycles, they could every 6.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kMmaMovesRegisters = true;
#else
constexpr bool kMmaMovesRegisters = false;
#endif
constexpr int kMmaCopyRegisters = 56;
constexpr int kMmaMultiplyRegisters = 200;
constexpr int kMmaRegisters = 128;  // of every thread before and after
static_assert(kMmaCopyRegisters + kMmaMultiplyRegisters == 2 * kMmaRegisters,
              "As many threads multiply as copy");

// Lines of whole 128 bytes whose 16-byte units change places, unit u to u ^ Swizzle(line): what is
// read at once, the same unit of eight consecutive lines (in float32 two units of four), lies in
// different banks. Of lines picked from a window about two in eight meet.
template <class T>
struct SwizzledLines {
  static constexpr int32_t kPeriod = 16 / static_cast<int32_t>(sizeof(T));
  static __device__ __forceinline__ int32_t Swizzle(int32_t line) {
    return sizeof(T) == 4 ? line % 4 * 2 : line % 8;
  }
  static __device__ __forceinline__ int32_t Offset(int32_t line, int32_t byte, int32_t stride) {
    return line * stride + (byte ^ Swizzle(line) * 16);
  }
};

// Lines as they are, where a warp reads whole 128 bytes of one line at once.
struct PlainLines {
  static constexpr int32_t kPeriod = 1;
  static __device__ __forceinline__ int32_t Offset(int32_t line, int32_t byte, int32_t stride) {
    return line * stride + byte;
  }
};

template <class Traits>
struct SpmmMmaStages {
  using T = typename Traits::T;
  using Tile = typename Traits::Tile;
  using Lines = typename Traits::Lines;
  static constexpr bool kWindow = Traits::kStaging == Staging::kWindow;
  // Windows: where the slot's line begins in its stage, in 16-byte units, swizzled. Gathering: the
  // feature that is copied, or -1.
  using TableEntry = std::conditional_t<kWindow, uint16_t, int32_t>;

  static constexpr int kSlotUnit = Traits::kSlotUnit;  // slots that are multiplied at a time
  static constexpr int kElement = sizeof(T);
  static constexpr int kRowStride = Tile::kBlockRows * kElement;
  static constexpr int kValueStride = Tile::kBlockCols * kElement;
  static_assert(kRowStride % 128 == 0 && kValueStride % 128 == 0,
                "Units change places within 128 bytes");

  const KernelArgs& args;
  TileCoordinates tile;
  StepRange steps;
  int32_t table_slots;  // slots per group in a table
  int32_t row0, col0;   // of the block
  int32_t first_group;
  uint32_t base;  // the shared address of stage 0

  __device__ __forceinline__ SpmmMmaStages(const KernelArgs& a, const void* shared)
      : args(a),
        tile(LocateTile(a.first_tile + blockIdx.x, a.outer_tiles, a.inner_tiles, a.config.split)),
        steps(StepsOf(tile.split, a.config.split, a.steps)) {
    table_slots = TableSlots(Op::kSpmm, a.config);
    row0 = tile.outer * Tile::kBlockRows;
    col0 = tile.inner * Tile::kBlockCols;
    first_group = col0 / a.vector_length;
    base = ptx::SharedAddress(shared);
    ptx::KeepInRegister(base);
  }

  __device__ __forceinline__ uint32_t Stage(int32_t stage) const {
    return base + stage * args.layout.stage_bytes;
  }
  __device__ __forceinline__ uint32_t Table(int32_t table) const {
    return base + args.layout.table_offset + table * args.layout.table_bytes;
  }
  __device__ __forceinline__ uint32_t Full(int32_t stage) const {
    return base + args.layout.result_offset + stage * 16;
  }
  __device__ __forceinline__ uint32_t Empty(int32_t stage) const { return Full(stage) + 8; }

  // By one thread, before the block's roles begin. Each thread that copies arrives twice: when its
  // entries of the table are written and when its copies have landed.
  __device__ __forceinline__ void InitBarriers() const {
    for (int32_t stage = 0; stage < args.config.stages; ++stage) {
      ptx::BarrierInit(Full(stage), 2 * Traits::kCopyThreads);
      ptx::BarrierInit(Empty(stage), Tile::kWarps);
    }
  }

  // Slots of the step, rounded up to whole products: the surplus is zero.
  __device__ __forceinline__ int32_t StepSlots(int32_t step) const {
    const int32_t left = args.valid_kept - step * args.config.block_kept;
    return RoundUp(min(left, args.config.block_kept), kSlotUnit);
  }

  __device__ __forceinline__ int32_t GroupOf(int32_t column) const {
    return args.by_vector_length.Quotient(col0 + column) - first_group;
  }
};

// Which stage, and which table of decoded indices, a step has; both go round.
struct MmaTurn {
  int32_t stage = 0;
  uint32_t round = 0;  // how often the stages were gone through
  int32_t table = 0;

  __device__ __forceinline__ void Advance(int32_t stages) {
    table = table == stages ? 0 : table + 1;
    if (++stage == stages) {
      stage = 0;
      ++round;
    }
  }
};

}  // namespace jax_nm
