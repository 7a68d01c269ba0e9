#include "tuning_ffma.h"

#include <algorithm>

#include "tuning_mma.h"

namespace jax_nm {

std::string FfmaReason(const Problem& p) {
  if (p.dtype != DType::kFloat32) return "multiplies in float32, got operands in half precision";
  if (p.batch == 0 || p.rows == 0 || p.cols == 0 || p.depth == 0) {
    return "needs something to multiply, got an empty operand";
  }
  if (EffectiveVectorLength(p) % kFfmaGroupCols != 0) {
    return "needs a vector_length that is a multiple of " + std::to_string(kFfmaGroupCols) +
           " or spans all columns, got " + std::to_string(p.vector_length);
  }
  if (p.x_layout != Layout::kFeatureMajor) {
    return "needs a feature-major x, as calls with more than 64 rows have it, got a row-major one";
  }
  if (p.rows % 4 != 0) {
    return "needs rows of whole 16 bytes, got " + std::to_string(p.rows) + " of them";
  }
  if (p.values_cols % 4 != 0) {
    return "needs rows of values of whole 16 bytes, got " + std::to_string(p.values_cols) +
           " columns";
  }
  if (std::max(p.rows, p.values_cols) * 4 > UINT32_MAX) {
    return "needs rows and columns of less than 4 GB each";
  }
  return "";
}

// A slot of a tile of R x C, with thread tiles of r x c, asks of a multiprocessor
//
//   issue    R C / (4 * 32) * (1 + 9 / (r c)) + 7 instructions for each copy / 4 cycles: of 541 and
//            556 instructions in the loops that multiply four slots, 512 are multiplications;
//   shared   R C (1 / r + 1 / c) * 4 bytes read, and (x lines * R + C) * 4 written, at 128 a cycle:
//            an upper bound, since neighbouring lanes that share an address are served at once;
//   ingress  (x lines * R + C) * 4 bytes from L2,
//
// where x lines is m / n from windows and the groups of the tile when gathering. At 128 x 128 and
// 16 x 8, 16:32, L = 32: 143, 108, and 36 of 36 bytes a cycle.
double FfmaCycles(const Problem& p, const Device& device, const Config& c) {
  constexpr double kCopyInstructions = 7.0;
  constexpr double kOverhead = 9.0;       // instructions beside those of a slot that multiply
  constexpr double kShare = 0.92;         // of the largest of the three that warps achieve
  constexpr double kAlone = 0.75;         // one warp that multiplies for each scheduler
  constexpr double kSharedBytes = 128.0;  // a cycle
  constexpr double kIngressBytes = 42.0;  // a cycle and SM: 9 TB/s together
  constexpr double kStep = 150.0;         // of a block, in which others on its SM go on
  constexpr double kLaunch = 5000.0;
  const SharedLayout layout = MakeSharedLayout(p.op, c, p.m, 4);
  const double slots = layout.second_count;
  const double rows = c.block_rows, cols = c.block_cols;

  // Two blocks need registers that only machine code for sm_90a moves.
  const CopierBlocks blocks = CopierBlocksOf(p, device, c, device.wgmma ? kMmaBlocks : 1.0);

  const double lines = layout.first_count;
  const double copied = (lines * rows + slots * cols) * 4.0;
  const double products = slots * rows * cols;
  const double tile = double(c.thread_rows) * c.thread_cols;
  const double issue =
      (products * (1.0 + kOverhead / tile) + kCopyInstructions * copied / 16.0) / device.fp32_lanes;
  const double read = products * (c.thread_rows + c.thread_cols) / tile * 4.0;
  const double shared = (read + copied) / kSharedBytes;
  const double busy = std::max({issue, shared, copied / kIngressBytes}) / kShare /
                      (blocks.resident > 1.0 ? 1.0 : kAlone);
  return CopierCycles(device, c, blocks, busy, kStep, kLaunch);
}

}  // namespace jax_nm
