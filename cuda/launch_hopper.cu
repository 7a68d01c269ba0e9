#include <cuda.h>

#include <atomic>

#include "hopper_config.h"
#include "hopper_maps.h"
#include "launch_args.h"
#include "launch_hopper.h"
#include "short_config.h"
#include "split_config.h"
#include "tf32_config.h"
#include "tuning_split.h"

namespace jax_nm {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

// Found through the runtime, so that the library does not link against the driver.
std::atomic<Encode> encode{nullptr};

CUtensorMapDataType MapType(DType dtype) {
  return dtype == DType::kFloat32    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
         : dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

// A batch of matrices of contiguous lines. Of every line `length` elements are visible out of
// `pitch`, and of every matrix `lines` out of `pitch_lines`.
struct Lines {
  const void* data;
  DType dtype;
  int64_t length;
  int64_t pitch;
  int64_t lines;
  int64_t pitch_lines;
  int64_t batch;
  bool rounds_to_tf32 = false;  // float32, on its way to shared memory
};

// Boxes of one line of 128 or 64 bytes by `box_lines`, stored with the swizzle of that width. What
// is not visible reads as zeros and is not written.
cudaError_t MakeMap(const Lines& m, int32_t box_lines, CUtensorMap* map,
                    int32_t line_bytes = kHopperLineBytes) {
  const int64_t width = ByteWidth(m.dtype);
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(m.length), static_cast<cuuint64_t>(m.lines),
                                static_cast<cuuint64_t>(m.batch)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(m.pitch * width),
                                static_cast<cuuint64_t>(m.pitch * m.pitch_lines * width)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(line_bytes / width),
                            static_cast<cuuint32_t>(box_lines), 1};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result = encode.load(std::memory_order_acquire)(
      map, m.rounds_to_tf32 ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 : MapType(m.dtype), 3,
      const_cast<void*>(m.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      line_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

HopperRaster MakeRaster(const TileCounts& tiles, int32_t band_cols) {
  const int32_t n_tiles = tiles.outer, col_tiles = tiles.inner;
  HopperRaster r{};
  r.per_batch = n_tiles * col_tiles;
  r.per_band = n_tiles * band_cols;
  r.band_cols = band_cols;
  r.last_band = CeilDiv(col_tiles, band_cols) - 1;
  r.last_cols = col_tiles - r.last_band * band_cols;
  r.by_batch = MakeDivisor(r.per_batch);
  r.by_band = MakeDivisor(r.per_band);
  r.by_band_cols = MakeDivisor(r.band_cols);
  r.by_last_cols = MakeDivisor(r.last_cols);
  return r;
}

// spmm_t: the slots of each of its blocks of features.
int32_t BlockSlots(const Problem& p, const Config& config) {
  return config.block_windows * p.n / (config.block_kept / kHopperBlockSlots);
}

HopperArgs MakeHopperArgs(const Problem& p, const Config& config, const Buffers& b) {
  const TileCounts tiles = Tiles(p, config);
  HopperArgs a{};
  a.x = b.first;
  a.indices = b.indices;
  a.bias = p.has_bias ? b.bias : nullptr;
  a.x_batch_bytes = p.depth * p.rows * ByteWidth(p.dtype);
  a.indices_batch = p.groups * p.kept;
  a.rows = static_cast<int32_t>(p.rows);
  a.cols = static_cast<int32_t>(p.cols);
  a.depth = static_cast<int32_t>(p.depth);
  a.kept = static_cast<int32_t>(p.kept);
  a.valid_kept = static_cast<int32_t>(ValidKept(p.depth, p.n, p.m));
  a.groups = static_cast<int32_t>(p.groups);
  a.m = p.m;
  a.by_vector_length = MakeDivisor(EffectiveVectorLength(p));
  a.by_n = MakeDivisor(p.n);
  a.steps = Steps(p, config);
  a.group_steps = CeilDiv(EffectiveVectorLength(p), config.block_cols);
  a.raster = MakeRaster(tiles, config.raster_cols);
  a.tiles = static_cast<int32_t>(p.batch * tiles.outer * tiles.inner);
  a.whole_tiles = a.tiles - config.shared_tiles;
  a.cluster = config.cluster;
  a.by_cluster = MakeDivisor(config.cluster);
  a.by_blocks = MakeDivisor(config.blocks);
  a.result_feature_major = p.op == Op::kSpmm && p.y_layout == Layout::kFeatureMajor;
  a.emits_sum = p.emits_sum;
  a.activation = p.activation;
  if (p.op == Op::kSpmmT) a.block_slots = BlockSlots(p, config);
  return a;
}

bool IsAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// In float32, the kernels that split it need every bit; the others are for TF32.
cudaError_t MakeDyMap(const Problem& p, const Config& config, const void* data, CUtensorMap* map) {
  const bool splits = IsSplit(config.kernel);
  const bool tf32 = p.dtype == DType::kFloat32 && !splits;
  return MakeMap({data, p.dtype, p.rows, p.rows, p.cols, p.cols, p.batch, tf32},
                 splits ? config.block_cols : 64, map);
}

// Of the result, or of the sum before the activation, which lies alike.
cudaError_t MakeResultMap(const Problem& p, const HopperArgs& args, const void* data,
                          CUtensorMap* map) {
  if (p.op == Op::kSpmmT) {
    return MakeMap({data, p.result_dtype, p.rows, p.rows, p.depth, p.depth, p.batch},
                   kHopperLineBytes / ByteWidth(p.result_dtype), map);
  }
  const int64_t n = p.op == Op::kSpmm ? p.rows : p.kept;
  const int64_t length = args.result_feature_major ? n : p.cols;
  const int64_t lines = args.result_feature_major ? p.cols : n;
  // The columns of a warp, or as many of N as a line has elements.
  const int32_t box_lines =
      args.result_feature_major ? kHopperWarpCols : kHopperLineBytes / ByteWidth(p.result_dtype);
  return MakeMap({data, p.result_dtype, length, length, lines, lines, p.batch}, box_lines, map);
}

cudaError_t LaunchBlocks(const Config& config, const void* function, void** parameters,
                         cudaStream_t stream) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(config.cluster), 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(config.blocks));
  launch.blockDim = dim3(static_cast<unsigned>(config.threads));
  launch.dynamicSmemBytes = static_cast<size_t>(config.shared_bytes);
  launch.stream = stream;
  launch.attrs = &cluster;
  launch.numAttrs = config.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelExC(&launch, function, parameters);
}

}  // namespace

cudaError_t PrepareHopper() {
  if (encode.load(std::memory_order_acquire) != nullptr) return cudaSuccess;
  constexpr unsigned kVersion = 12000;  // the first one to have it
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             kVersion, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  encode.store(reinterpret_cast<Encode>(function), std::memory_order_release);
  return cudaSuccess;
}

cudaError_t MakeValuesMap(const Problem& p, const Config& config, const void* data,
                          CUtensorMap* map) {
  const int64_t valid_kept = ValidKept(p.depth, p.n, p.m);
  // In spmm_t the slots of the tile, or of one of its blocks.
  const bool of_block = p.op == Op::kSpmmT && BlockSlots(p, config) < kHopperBlockSlots;
  return MakeMap({data, p.dtype, p.cols, p.values_cols, valid_kept, p.kept, p.batch},
                 of_block ? kHopperBlockSlots : config.block_kept, map);
}

namespace {

// Transposed values: lines of slots, a box for the columns of half a tile.
cudaError_t MakeTransposedValuesMap(const Problem& p, const Config& config, const void* data,
                                    CUtensorMap* map) {
  return MakeMap(
      {data, p.dtype, ValidKept(p.depth, p.n, p.m), PaddedKept(p.kept), p.cols, p.cols, p.batch},
      config.block_cols / 2, map, config.block_kept * ByteWidth(p.dtype));
}

}  // namespace

cudaError_t LaunchHopper(const Problem& p, const Config& config, const void* function,
                         const Buffers& b, cudaStream_t stream) {
  if (!IsAligned(b.first) || !IsAligned(b.second) || !IsAligned(b.result) || !IsAligned(b.sum)) {
    return cudaErrorMisalignedAddress;
  }
  HopperArgs args = MakeHopperArgs(p, config, b);
  HopperMaps maps{};
  cudaError_t error = p.op == Op::kSddmm ? MakeDyMap(p, config, b.second, &maps.second)
                                         : MakeValuesMap(p, config, b.second, &maps.second);
  if (error != cudaSuccess) return error;
  if (p.op == Op::kSpmmT) {
    error = MakeDyMap(p, config, b.first, &maps.first);
    if (error != cudaSuccess) return error;
  }
  error = MakeResultMap(p, args, b.result, &maps.result);
  if (error != cudaSuccess) return error;
  if (p.emits_sum) {
    error = MakeResultMap(p, args, b.sum, &maps.sum);
    if (error != cudaSuccess) return error;
  }
  void* parameters[] = {&maps, &args};
  return LaunchBlocks(config, function, parameters, stream);
}

cudaError_t LaunchShort(const Problem& p, const Config& config, const void* function,
                        const Buffers& b, cudaStream_t stream) {
  if (!IsAligned(b.first) || !IsAligned(b.second) || !IsAligned(b.result) || !IsAligned(b.sum)) {
    return cudaErrorMisalignedAddress;
  }
  ShortArgs args{};
  args.hopper = MakeHopperArgs(p, config, b);
  args.result = b.result;
  args.sum = b.sum;
  args.slots = config.block_kept;
  args.windows = config.block_windows;
  args.features = config.block_windows * p.m;
  args.stages = config.stages;
  if (p.op == Op::kSddmm) {
    args.layout = MakeSplitSddmmLayout(args.features);
    args.features = args.layout.x_slab_bytes / kHopperLineBytes;
  } else {
    args.layout = IsSplit(config.kernel)
                      ? MakeShortLayout<SplitTile>(args.features, args.slots, config.group_cols)
                      : MakeShortLayout(args.features, args.slots, config.group_cols);
  }
  HopperMaps maps{};
  cudaError_t error = MakeMap({b.first, p.dtype, p.rows, p.rows, p.depth, p.depth, p.batch},
                              args.features, &maps.first);
  if (error != cudaSuccess) return error;
  error = p.op == Op::kSddmm ? MakeDyMap(p, config, b.second, &maps.second)
                             : MakeValuesMap(p, config, b.second, &maps.second);
  if (error != cudaSuccess) return error;
  void* parameters[] = {&maps, &args};
  return LaunchBlocks(config, function, parameters, stream);
}

cudaError_t LaunchTf32(const Problem& p, const Config& config, const void* function,
                       const Buffers& b, cudaStream_t stream) {
  if (!IsAligned(b.first) || !IsAligned(b.second) || !IsAligned(b.result) || !IsAligned(b.sum)) {
    return cudaErrorMisalignedAddress;
  }
  Tf32Args args{MakeHopperArgs(p, config, b), static_cast<float*>(b.result),
                static_cast<float*>(b.sum)};
  HopperMaps maps{};
  cudaError_t error = MakeTransposedValuesMap(p, config, b.second, &maps.second);
  if (error != cudaSuccess) return error;
  if (!args.hopper.result_feature_major) {
    error = MakeResultMap(p, args.hopper, b.result, &maps.result);
    if (error != cudaSuccess) return error;
    if (p.emits_sum) {
      error = MakeResultMap(p, args.hopper, b.sum, &maps.sum);
      if (error != cudaSuccess) return error;
    }
  }
  void* parameters[] = {&maps, &args};
  return LaunchBlocks(config, function, parameters, stream);
}

}  // namespace jax_nm
