// The multi-stage pipeline that the three kernels share.
#pragma once

#include <cstdint>

#include "kernel_args.h"
#include "ptx.cuh"

namespace jax_nm {

// Waits until the oldest of the `stages - 1` groups in flight has arrived (1 < stages <= 4).
__device__ __forceinline__ void WaitForOldest(int32_t stages) {
  if (stages == 2) {
    ptx::WaitGroup<0>();
  } else if (stages == 3) {
    ptx::WaitGroup<1>();
  } else {
    ptx::WaitGroup<2>();
  }
}

// Runs steps [first, last) of a block with the methods
//   Fetch(step)                  starts to read the step's indices into registers
//   Decode(step, table)          writes them, decoded, to the table of that number
//   Issue(step, stage, table)    starts to copy the step's operands into that stage
//   Compute(step, stage, table)  accumulates
// Copies run `stages - 1` steps ahead. Their addresses may depend on indices, so these are read one
// step further ahead and decoded after the computation that hides their latency: with
// `stages + 1` tables no step overwrites what a slower warp still reads.
template <class Block>
__device__ __forceinline__ void RunPipeline(Block& block, int32_t first, int32_t last,
                                            int32_t stages) {
  if (stages == 1) {
    for (int32_t step = first; step < last; ++step) {
      block.Fetch(step);
      __syncthreads();
      block.Decode(step, 0);
      __syncthreads();
      block.Issue(step, 0, 0);
      ptx::CommitGroup();
      ptx::WaitGroup<0>();
      __syncthreads();
      block.Compute(step, 0, 0);
    }
    return;
  }
  const int32_t tables = stages + 1;
  for (int32_t ahead = 0; ahead < stages && first + ahead < last; ++ahead) {
    block.Fetch(first + ahead);
    block.Decode(first + ahead, ahead);
  }
  __syncthreads();
  for (int32_t ahead = 0; ahead < stages - 1; ++ahead) {
    if (first + ahead < last) block.Issue(first + ahead, ahead, ahead);
    ptx::CommitGroup();
  }
  int32_t read_stage = 0, write_stage = stages - 1;
  int32_t read_table = 0, issue_table = stages - 1, decode_table = stages;
  for (int32_t step = first; step < last; ++step) {
    WaitForOldest(stages);
    __syncthreads();
    if (step + stages - 1 < last) block.Issue(step + stages - 1, write_stage, issue_table);
    ptx::CommitGroup();
    const bool more = step + stages < last;
    if (more) block.Fetch(step + stages);
    block.Compute(step, read_stage, read_table);
    if (more) block.Decode(step + stages, decode_table);
    read_stage = read_stage + 1 == stages ? 0 : read_stage + 1;
    write_stage = write_stage + 1 == stages ? 0 : write_stage + 1;
    read_table = read_table + 1 == tables ? 0 : read_table + 1;
    issue_table = issue_table + 1 == tables ? 0 : issue_table + 1;
    decode_table = decode_table + 1 == tables ? 0 : decode_table + 1;
  }
}

// One step's indices of a block: [groups_in_tile][slots] bytes, slots [first_slot, first_slot +
// slots) of groups [first_group, ...). Entries without a valid slot are reported as such.
struct IndexBlock {
  const uint8_t* indices;  // of this batch element
  int32_t first_group;
  int32_t first_slot;
  int32_t slots;       // per group in the table
  int32_t used_slots;  // of these, the ones that belong to the step
};

// Two indices per thread are kept in registers while the previous step computes, enough for
// vector_length >= 32; the rest is read where it is used.
constexpr int32_t kFetched = 2;

__device__ __forceinline__ bool IndexIsValid(const KernelArgs& args, const IndexBlock& block,
                                             int32_t group, int32_t slot) {
  return slot < block.used_slots && block.first_slot + slot < args.valid_kept &&
         block.first_group + group < args.groups;
}

__device__ __forceinline__ uint8_t ReadIndex(const KernelArgs& args, const IndexBlock& block,
                                             int32_t group, int32_t slot) {
  return __ldg(block.indices + int64_t{block.first_group + group} * args.kept + block.first_slot +
               slot);
}

__device__ __forceinline__ void FetchIndices(const KernelArgs& args, const IndexBlock& block,
                                             uint8_t (&fetched)[kFetched]) {
  const int32_t count = args.config.groups_in_tile * block.slots;
#pragma unroll
  for (int32_t q = 0; q < kFetched; ++q) {
    const int32_t i = threadIdx.x + q * blockDim.x;
    if (i >= count) break;
    const int32_t group = args.by_table_slots.Quotient(i), slot = i - group * block.slots;
    if (IndexIsValid(args, block, group, slot)) fetched[q] = ReadIndex(args, block, group, slot);
  }
}

// write(i, source) for each entry i of the table; source is -1 where no slot is.
template <class Write>
__device__ __forceinline__ void DecodeIndices(const KernelArgs& args, const IndexBlock& block,
                                              const uint8_t (&fetched)[kFetched], Write write) {
  const int32_t count = args.config.groups_in_tile * block.slots;
  const auto decode = [&](int32_t i, int32_t q) {
    const int32_t group = args.by_table_slots.Quotient(i), slot = i - group * block.slots;
    if (!IndexIsValid(args, block, group, slot)) {
      write(i, -1);
    } else {
      const uint8_t index = q < kFetched ? fetched[q] : ReadIndex(args, block, group, slot);
      write(i, SourceOf(args, block.first_slot + slot, index));
    }
  };
#pragma unroll
  for (int32_t q = 0; q < kFetched; ++q) {
    const int32_t i = threadIdx.x + q * blockDim.x;
    if (i < count) decode(i, q);
  }
  for (int32_t i = threadIdx.x + kFetched * blockDim.x; i < count; i += blockDim.x) {
    decode(i, kFetched);
  }
}

}  // namespace jax_nm
