// Which tiles, and which of their steps, a block computes.
#pragma once

#include "hopper_config.h"

namespace jax_nm {

enum class HopperPart : int32_t {
  kWhole,  // all steps of a tile
  kHead,   // steps whose sums go to the workspace, for the block that has the tile's last one
  kTail,  // the last steps: the block adds what the blocks before it have left, and stores the tile
};

struct HopperWork {
  HopperPart part;
  int32_t tile;
  int32_t first_step;
  int32_t last_step;  // exclusive
};

// Whole tiles first, one from each round of the blocks. The steps of the tiles that are left are
// one row, cut into as many even pieces as there are blocks. A block begins with the end of its
// piece, the head of a tile that the next block completes, and ends with its beginning, the tail of
// one that blocks before it have begun: so it never waits long, and only for blocks with lower
// numbers. GPUs start blocks in the order of their numbers, though CUDA does not promise it: what a
// block waits for is done or under way. Every piece has a step (HopperConfig sees to it), so every
// flag that is waited for gets set.
class HopperWalk {
 public:
  __device__ __forceinline__ HopperWalk(const HopperArgs& args, int32_t block, int32_t blocks)
      : args_(args), block_(block), blocks_(blocks) {
    rounds_ = block < args.whole_tiles ? (args.whole_tiles - block + blocks - 1) / blocks : 0;
    if (args.whole_tiles == args.tiles) return;
    const int32_t begin = PieceBegin(block), end = PieceBegin(block + 1);
    const int32_t begin_tile = args.by_steps.Quotient(begin);
    const int32_t end_tile = args.by_steps.Quotient(end);
    tail_tile_ = begin_tile;
    tail_step_ = begin - begin_tile * args.steps;
    head_tile_ = end_tile;
    head_first_ = begin_tile == end_tile ? tail_step_ : 0;
    head_last_ = end - end_tile * args.steps;
    head_ = head_first_ < head_last_ ? 1 : 0;
    tail_ = tail_step_ > 0 && begin_tile < end_tile ? 1 : 0;
    middle_tile_ = begin_tile + (tail_step_ > 0 ? 1 : 0);
    middle_ = end_tile > middle_tile_ ? end_tile - middle_tile_ : 0;
  }

  __device__ __forceinline__ int32_t Count() const { return rounds_ + head_ + middle_ + tail_; }

  __device__ __forceinline__ HopperWork Work(int32_t i) const {
    const int32_t j = i - rounds_;  // in the piece
    HopperWork work{HopperPart::kWhole, block_ + i * blocks_, 0, args_.steps};
    if (j >= 0) work.tile = args_.whole_tiles + middle_tile_ + j - head_;
    if (j == 0 && head_ != 0) {
      work = {HopperPart::kHead, args_.whole_tiles + head_tile_, head_first_, head_last_};
    }
    if (j == head_ + middle_) {
      work = {HopperPart::kTail, args_.whole_tiles + tail_tile_, tail_step_, args_.steps};
    }
    // Equal in all lanes, which lets the compiler keep loops over the steps in uniform registers.
    work.first_step = __shfl_sync(0xffffffffu, work.first_step, 0);
    work.last_step = __shfl_sync(0xffffffffu, work.last_step, 0);
    return work;
  }

  // The first block that has steps of the tile whose tail this block has.
  __device__ __forceinline__ int32_t FirstHead() const {
    int32_t block = block_ - 1;
    while (PieceBegin(block) > tail_tile_ * args_.steps) --block;
    return block;
  }

 private:
  __device__ __forceinline__ int32_t PieceBegin(int32_t block) const {
    const int64_t steps = int64_t{args_.tiles - args_.whole_tiles} * args_.steps;
    return static_cast<int32_t>(steps * block / blocks_);
  }

  const HopperArgs& args_;
  const int32_t block_;
  const int32_t blocks_;
  int32_t rounds_;
  // The piece: at most one head, whole tiles, at most one tail.
  int32_t head_ = 0;
  int32_t head_tile_ = 0;
  int32_t head_first_ = 0;
  int32_t head_last_ = 0;
  int32_t middle_ = 0;
  int32_t middle_tile_ = 0;
  int32_t tail_ = 0;
  int32_t tail_tile_ = 0;
  int32_t tail_step_ = 0;
};

}  // namespace jax_nm
