// spmm_t:  dx[r, source(g, j)] += sum over columns c of group g of  dy[r, c] * values[j, c].
//
// A block owns rows x whole windows of dx, in float32 in shared memory, and steps over the columns.
// For each group a thread forms the sums of its rows and a chunk of slots in registers and adds
// them to the rows of dx that the slots name. All slots of a window and a row belong to one warp,
// and the slots of a group name distinct rows of dx, so an element of dx is updated group by group,
// in a fixed order, and needs no barrier but the warp's own.
#pragma once

#include "pipeline.cuh"
#include "tile_io.cuh"

namespace jax_nm {

template <class T_, class Tile_>
struct SpmmTTraits {
  using T = T_;
  using Tile = Tile_;
  static constexpr int kElement = sizeof(T);
  static constexpr int kValueStride = PaddedRowBytes(Tile::kBlockCols, kElement);
  static constexpr int kVector = 4;  // columns that are multiplied at a time
};

template <class Traits>
struct SpmmTBlock {
  using T = typename Traits::T;
  using Tile = typename Traits::Tile;
  static constexpr int kRows = Tile::kThreadRows;
  static constexpr int kKept = Tile::kThreadKept;
  static constexpr int kVector = Traits::kVector;
  static constexpr int kLaneKept = Tile::kLaneKept;

  const KernelArgs& args;
  unsigned char* shared;
  TileCoordinates tile;
  Matrix<T> dy;
  Matrix<T> values;
  const uint8_t* indices;
  int32_t row0, slot0, feature0;  // of the block
  int32_t thread_row;             // in the block
  int32_t lane_kept;              // the thread's slots in a chunk: lane_kept + kLaneKept * j
  int32_t first_slot, last_slot;  // the warp's slots, in the block
  float* dx;                      // [block_windows * m][block_rows], at the thread's first row
  uint8_t fetched[kFetched];

  __device__ __forceinline__ SpmmTBlock(const KernelArgs& a, unsigned char* s)
      : args(a),
        shared(s),
        tile(LocateTile(a.first_tile + blockIdx.x, a.outer_tiles, a.inner_tiles, a.config.split)) {
    const T* first = static_cast<const T*>(a.first) + tile.batch * a.rows * a.cols;
    const T* second = static_cast<const T*>(a.second) + tile.batch * a.kept * a.cols;
    dy = {first, a.rows, a.cols, a.first_feature_major, a.first_vector};
    values = {second, a.cols, a.kept, true, a.second_vector};
    indices = a.indices + tile.batch * a.groups * a.kept;
    row0 = tile.outer * a.config.block_rows;
    slot0 = tile.inner * a.config.block_kept;
    feature0 = tile.inner * a.config.block_windows * a.m;
    const int32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    thread_row = warp % a.config.row_warps * Tile::kWarpRows + lane % Tile::kLaneRows * kRows;
    lane_kept = lane / Tile::kLaneRows;
    const int32_t warp_kept = a.config.warp_windows * a.n;
    first_slot = warp / a.config.row_warps * warp_kept;
    last_slot = min(first_slot + warp_kept, a.valid_kept - slot0);
    dx = reinterpret_cast<float*>(shared + a.layout.result_offset) + thread_row;
  }

  __device__ __forceinline__ uint16_t* Table(int32_t table) const {
    return reinterpret_cast<uint16_t*>(shared + args.layout.table_offset +
                                       table * args.layout.table_bytes);
  }

  __device__ __forceinline__ int32_t FirstGroup(int32_t step) const {
    return step * Tile::kBlockCols / args.vector_length;
  }

  __device__ __forceinline__ IndexBlock Indices(int32_t step) const {
    return {indices, FirstGroup(step), slot0, args.config.block_kept, args.config.block_kept};
  }

  __device__ __forceinline__ void ClearResult() const {
    float4* words = reinterpret_cast<float4*>(shared + args.layout.result_offset);
    const int32_t count = args.config.block_windows * args.m * args.config.block_rows / 4;
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) words[i] = float4{};
  }

  __device__ __forceinline__ void Fetch(int32_t step) {
    FetchIndices(args, Indices(step), fetched);
  }

  __device__ __forceinline__ void Decode(int32_t step, int32_t table) const {
    uint16_t* entries = Table(table);
    DecodeIndices(args, Indices(step), fetched, [&](int32_t i, int32_t source) {
      entries[i] = static_cast<uint16_t>(source < 0 ? 0 : source - feature0);
    });
  }

  __device__ __forceinline__ void Issue(int32_t step, int32_t stage, int32_t) const {
    unsigned char* base = shared + stage * args.layout.stage_bytes;
    const int32_t col0 = step * Tile::kBlockCols;
    const int32_t cols = args.cols;
    StageFeatures(dy, row0, args.config.block_rows, args.config.threads, Tile::kBlockCols, base,
                  args.layout.first_stride,
                  [=](int32_t i) { return col0 + i < cols ? col0 + i : -1; });
    const int32_t slot = slot0;
    const int32_t valid = args.valid_kept;
    StageFeatures(values, col0, Tile::kBlockCols, args.config.threads, args.config.block_kept,
                  base + args.layout.second_offset, Traits::kValueStride,
                  [=](int32_t i) { return slot + i < valid ? slot + i : -1; });
  }

  __device__ __forceinline__ void Compute(int32_t step, int32_t stage, int32_t table) {
    const unsigned char* base = shared + stage * args.layout.stage_bytes;
    const unsigned char* columns = base + thread_row * Traits::kElement;
    const unsigned char* weights = base + args.layout.second_offset;
    const uint16_t* entries = Table(table);
    const int32_t col0 = step * Tile::kBlockCols;
    const int32_t end = min(args.cols - col0, Tile::kBlockCols);
    for (int32_t slot = first_slot; slot < last_slot; slot += Tile::kWarpKept) {
      const unsigned char* slot_weights = weights + (slot + lane_kept) * Traits::kValueStride;
      const uint16_t* slot_entries = entries + slot + lane_kept;
      int32_t group_end = (FirstGroup(step) + 1) * args.vector_length - col0;
      for (int32_t begin = 0; begin < end; begin = group_end - args.vector_length) {
        float sums[kRows][kKept];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < kKept; ++j) sums[i][j] = 0.0f;
        }
        const int32_t stop = min(group_end, end);
        MultiplyGroup(columns, slot_weights, begin, stop, sums);
        Scatter(slot_entries, last_slot - slot - lane_kept, sums);
        if constexpr (kLaneKept > 1) __syncwarp();
        slot_entries += args.config.block_kept;
        group_end += args.vector_length;
      }
    }
  }

  __device__ __forceinline__ void MultiplyGroup(const unsigned char* columns,
                                                const unsigned char* weights, int32_t begin,
                                                int32_t stop, float (&sums)[kRows][kKept]) const {
    int32_t column = begin;
    if (begin % kVector == 0) {
      for (; column + kVector <= stop; column += kVector) {
        float dense[kVector][kRows];
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          LoadVector<T>(columns + (column + k) * args.layout.first_stride, dense[k]);
        }
#pragma unroll
        for (int j = 0; j < kKept; ++j) {
          float weight[kVector];
          LoadVector<T>(weights + j * kLaneKept * Traits::kValueStride + column * Traits::kElement,
                        weight);
#pragma unroll
          for (int k = 0; k < kVector; ++k) {
#pragma unroll
            for (int i = 0; i < kRows; ++i) sums[i][j] += dense[k][i] * weight[k];
          }
        }
      }
    }
    for (; column < stop; ++column) {
      float dense[kRows];
      LoadVector<T>(columns + column * args.layout.first_stride, dense);
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        float weight[1];
        LoadVector<T>(weights + j * kLaneKept * Traits::kValueStride + column * Traits::kElement,
                      weight);
#pragma unroll
        for (int i = 0; i < kRows; ++i) sums[i][j] += dense[i] * weight[0];
      }
    }
  }

  // Four slots are read before the first is written, to overlap their latencies: the slots of a
  // group name distinct rows. (Where they do not, one of the sums is lost, in bounds.)
  __device__ __forceinline__ void Scatter(const uint16_t* entries, int32_t slots,
                                          const float (&sums)[kRows][kKept]) const {
    constexpr int kBatch = 4;
#pragma unroll
    for (int first = 0; first < kKept; first += kBatch) {
      float* target[kBatch];
      float current[kBatch][kRows];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if ((first + j) * kLaneKept < slots) {
          target[j] = dx + entries[(first + j) * kLaneKept] * args.config.block_rows;
          LoadVector<float>(target[j], current[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if ((first + j) * kLaneKept < slots) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) current[j][i] += sums[i][first + j];
          StoreVector(target[j], current[j], kRows, true);
        }
      }
    }
  }

  __device__ __forceinline__ void Store() const {
    StoreTyped<T>(args, tile, int64_t{args.rows} * args.depth, args.result,
                  [&](auto* matrix) { StoreTo(matrix); });
  }

  template <class Out>
  __device__ __forceinline__ void StoreTo(Out* result) const {
    const float* tile_dx = reinterpret_cast<const float*>(shared + args.layout.result_offset);
    const int32_t rows = args.config.block_rows;
    const int32_t features = min(args.config.block_windows * args.m, args.depth - feature0);
    if (args.result_feature_major) {
      for (int32_t i = threadIdx.x * 4; i < features * rows; i += blockDim.x * 4) {
        const int32_t feature = i / rows, row = i % rows;
        float part[4];
        LoadVector<float>(tile_dx + i, part);
        StoreVector(result + int64_t{feature0 + feature} * args.rows + row0 + row, part,
                    args.rows - row0 - row, args.result_vector);
      }
    } else {
      for (int32_t i = threadIdx.x; i < features * rows; i += blockDim.x) {
        const int32_t feature = i % features, row = i / features;
        if (row0 + row < args.rows) {
          result[int64_t{row0 + row} * args.depth + feature0 + feature] =
              Round<Out>(tile_dx[feature * rows + row]);
        }
      }
    }
  }
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Tile::kMaxThreads, Traits::Tile::kMinBlocks)
    SpmmTKernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(16) unsigned char shared[];
  SpmmTBlock<Traits> block(args, shared);
  const StepRange range = StepsOf(block.tile.split, args.config.split, args.steps);
  block.ClearResult();
  RunPipeline(block, range.first, range.last, args.config.stages);
  __syncthreads();
  block.Store();
}

}  // namespace jax_nm
