// The wall between dispatch and the files that are compiled for one instruction set: plain data
// and function pointers, nothing that a compiler could emit code for.
#pragma once

#include <cstdint>

#include "problem.h"

namespace jax_nm {

// How one call is cut into blocks, and the blocks into tasks. Every element is summed in an order
// that follows from the problem and the instruction set; the number of threads only moves the
// borders of what a task owns, and so changes no bit of the result.
//
//   spmm    task = block_rows x block_cols of y,       loops over depth
//   spmm_t  task = block_rows x block_depth of dx,     loops over cols
//   sddmm   task = block_kept x block_cols of dvalues, loops over rows
struct Config {
  int64_t block_rows;
  int64_t block_cols;
  int64_t block_windows;  // block_kept = block_windows * n, block_depth = block_windows * m
  int64_t tile_cols;      // columns of values that are packed at a time
  int64_t skinny_slots;   // spmm of a few rows: slots between two visits of the sums; otherwise 0
  int64_t active_kept;    // slots before the padding ones, which close the last window
  int64_t row_blocks;
  int64_t col_blocks;
  int64_t window_blocks;
  int64_t tasks;
  // Scratch of one thread, in bytes: the packed x-like, y-like and values-like blocks, and the
  // decoded sources of one group.
  int64_t y_offset;
  int64_t values_offset;
  int64_t sources_offset;
  int64_t scratch_bytes;
};

// `first` and `second` are the floating-point operands in the order of the operation.
struct Job {
  Problem problem;
  Config config;
  const void* first;
  const void* second;
  const uint8_t* indices;
  void* result;
};

// Runs one task. `scratch` is aligned to kScratchAlignment, private to the calling thread, and its
// contents are undefined.
using TaskFunction = void (*)(const Job& job, int64_t task, void* scratch);

constexpr int64_t kScratchAlignment = 64;

struct KernelTable {
  int32_t vector_bytes;
  int32_t panel_vectors;  // vectors of rows that a register block spans
  TaskFunction spmm;
  TaskFunction spmm_skinny;
  TaskFunction spmm_t;
  TaskFunction sddmm;
};

extern const KernelTable kPortableKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kNeonKernels;

// Sources of `slots` consecutive slots of one group, beginning with `first_slot`, relative to the
// first reduction index of that slot's window. `indices` points at the first of these slots. Lives
// in dispatch.cc so that the clamping rule of problem.h is compiled once, for every CPU.
void DecodeSources(const Problem& problem, const uint8_t* indices, int64_t first_slot,
                   int64_t slots, int32_t* sources);

}  // namespace jax_nm
