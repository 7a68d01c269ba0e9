#include <cuda.h>

#include <atomic>

#include "hopper_config.h"
#include "launch_args.h"
#include "launch_hopper.h"
#include "tuning_hopper.h"

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

// A batch of matrices of contiguous lines; `lines` of them are visible out of every `pitch_lines`.
struct Lines {
  const void* data;
  DType dtype;
  int64_t length;
  int64_t lines;
  int64_t pitch_lines;
  int64_t batch;
};

// Boxes of one 128-byte line by `box_lines`, stored with the 128-byte swizzle. What lies beyond the
// visible lines reads as zeros and is not written.
cudaError_t MakeMap(const Lines& m, int32_t box_lines, CUtensorMap* map) {
  const int64_t width = ByteWidth(m.dtype);
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(m.length), static_cast<cuuint64_t>(m.lines),
                                static_cast<cuuint64_t>(m.batch)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(m.length * width),
                                static_cast<cuuint64_t>(m.length * m.pitch_lines * width)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(kHopperLineBytes / width),
                            static_cast<cuuint32_t>(box_lines), 1};
  const cuuint32_t steps[] = {1, 1, 1};
  const CUresult result = encode.load(std::memory_order_acquire)(
      map, MapType(m.dtype), 3, const_cast<void*>(m.data), extents, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

HopperArgs MakeHopperArgs(const Problem& p, const Config& config, const Buffers& b) {
  const TileCounts tiles = Tiles(p, config);
  HopperArgs a{};
  a.x = b.first;
  a.indices = b.indices;
  a.x_batch_bytes = p.depth * p.rows * ByteWidth(p.dtype);
  a.indices_batch = p.groups * p.kept;
  a.rows = static_cast<int32_t>(p.rows);
  a.depth = static_cast<int32_t>(p.depth);
  a.kept = static_cast<int32_t>(p.kept);
  a.valid_kept = static_cast<int32_t>(ValidKept(p.depth, p.n, p.m));
  a.groups = static_cast<int32_t>(p.groups);
  a.m = p.m;
  a.vector_length = p.vector_length;
  a.by_n = MakeDivisor(p.n);
  a.steps = Steps(p, config);
  a.row_tiles = tiles.outer;
  a.col_tiles = tiles.inner;
  a.raster_cols = config.raster_cols;
  a.tiles = static_cast<int32_t>(p.batch * tiles.outer * tiles.inner);
  a.result_feature_major = p.y_layout == Layout::kFeatureMajor;
  return a;
}

bool IsAligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

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

cudaError_t LaunchHopper(const Problem& p, const Config& config, const void* function,
                         const Buffers& b, cudaStream_t stream) {
  if (!IsAligned(b.first) || !IsAligned(b.second) || !IsAligned(b.result)) {
    return cudaErrorMisalignedAddress;
  }
  HopperArgs args = MakeHopperArgs(p, config, b);
  CUtensorMap values_map, result_map;
  cudaError_t error = MakeMap({b.second, p.dtype, p.cols, args.valid_kept, p.kept, p.batch},
                              config.block_kept, &values_map);
  if (error != cudaSuccess) return error;
  // The epilogue stages 64 lines of the M side, or transposed as many lines of the N side as a line
  // has elements.
  const bool feature_major = args.result_feature_major;
  const bool transposed = HopperRowsAreM(config.kernel) == feature_major;
  const int32_t box_lines = transposed ? kHopperLineBytes / ByteWidth(p.result_dtype) : 64;
  const int64_t length = feature_major ? p.rows : p.cols;
  const int64_t lines = feature_major ? p.cols : p.rows;
  error =
      MakeMap({b.result, p.result_dtype, length, lines, lines, p.batch}, box_lines, &result_map);
  if (error != cudaSuccess) return error;
  void* parameters[] = {&values_map, &result_map, &args};
  return cudaLaunchKernel(function, dim3(static_cast<unsigned>(config.blocks)),
                          dim3(static_cast<unsigned>(config.threads)), parameters,
                          static_cast<size_t>(config.shared_bytes), stream);
}

}  // namespace jax_nm
