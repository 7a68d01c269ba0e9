// Which tiles, and which of their steps, a block computes.
#pragma once

#include "hopper_config.h"

namespace jax_nm {

struct HopperWork {
  int32_t tile;
  int32_t first_step;
  int32_t last_step;  // exclusive
  bool shared;        // by the cluster, of which each block has its own steps
};

// Whole tiles first, one from each round of the blocks. The tiles that are left are fewer than
// blocks: the blocks of a cluster share the steps of each, so that none is idle.
class HopperWalk {
 public:
  __device__ __forceinline__ HopperWalk(const HopperArgs& args, int32_t block, int32_t blocks)
      : args_(args),
        block_(block),
        blocks_(blocks),
        cluster_(args.by_cluster.Quotient(block)),
        clusters_(args.by_cluster.Quotient(blocks)) {
    rounds_ = args.by_blocks.Quotient(args.whole_tiles + blocks - 1 - block);
    const int32_t shared_tiles = args.tiles - args.whole_tiles;
    shared_ = cluster_ < shared_tiles ? (shared_tiles - cluster_ + clusters_ - 1) / clusters_ : 0;
    const int32_t rank = block - cluster_ * args.cluster;
    shared_first_ = FirstStep(rank);
    shared_last_ = FirstStep(rank + 1);
  }

  __device__ __forceinline__ int32_t Count() const { return rounds_ + shared_; }

  __device__ __forceinline__ bool IsShared(int32_t i) const { return i >= rounds_; }

  __device__ __forceinline__ HopperWork Work(int32_t i) const {
    HopperWork work{block_ + i * blocks_, 0, args_.steps, IsShared(i)};
    if (work.shared) {
      work.tile = args_.whole_tiles + cluster_ + (i - rounds_) * clusters_;
      work.first_step = shared_first_;
      work.last_step = shared_last_;
    }
    // Equal in all lanes, which lets the compiler keep loops over the steps in uniform registers.
    work.first_step = __shfl_sync(0xffffffffu, work.first_step, 0);
    work.last_step = __shfl_sync(0xffffffffu, work.last_step, 0);
    return work;
  }

 private:
  __device__ __forceinline__ int32_t FirstStep(int32_t rank) const {
    return args_.by_cluster.Quotient(args_.steps * rank);
  }

  const HopperArgs& args_;
  const int32_t block_;
  const int32_t blocks_;
  const int32_t cluster_;
  const int32_t clusters_;
  int32_t rounds_;
  int32_t shared_;
  int32_t shared_first_;
  int32_t shared_last_;
};

}  // namespace jax_nm
