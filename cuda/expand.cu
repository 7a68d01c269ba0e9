#include <algorithm>
#include <atomic>

#include "expand.h"
#include "kernel_expand.cuh"

namespace jax_nm {
namespace {

constexpr int64_t kMaxGridYZ = 65535;
// Enough rows to make the table worth its two barriers, few enough that a small weight still has a
// block for every place on the device: 1024 of them for 4096 x 4096 in half precision.
constexpr int32_t kTileRows = 64;
constexpr int64_t kMaxEntries = 8192;  // of a table, 4 bytes each

const void* FunctionOf(int64_t unit_bytes) {
  switch (unit_bytes) {
    case 2:
      return reinterpret_cast<const void*>(&ExpandKernel<2>);
    case 4:
      return reinterpret_cast<const void*>(&ExpandKernel<4>);
    case 8:
      return reinterpret_cast<const void*>(&ExpandKernel<8>);
    default:
      return reinterpret_cast<const void*>(&ExpandKernel<16>);
  }
}

// The most groups of `length` units that a tile of `width` units touches.
int64_t GroupsTouched(int64_t width, int64_t length) {
  if (length % width == 0) return 1;
  if (width % length == 0) return width / length;
  return (width + length - 2) / length + 1;
}

int64_t Bits(const void* pointer) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer));
}

}  // namespace

cudaError_t PrepareExpand(int device) {
  static std::atomic<uint64_t> prepared{0};
  const bool tracked = device < 64;
  const uint64_t bit = tracked ? uint64_t{1} << device : 0;
  if (tracked && (prepared.load(std::memory_order_acquire) & bit) != 0) return cudaSuccess;
  for (int64_t unit_bytes : {2, 4, 8, 16}) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, FunctionOf(unit_bytes));
    if (error != cudaSuccess) return error;
  }
  prepared.fetch_or(bit, std::memory_order_release);
  return cudaSuccess;
}

cudaError_t LaunchExpand(const Expansion& e, const void* values, const uint8_t* indices,
                         void* dense, cudaStream_t stream) {
  if (e.batch == 0 || e.depth == 0 || e.cols == 0) return cudaSuccess;
  const int64_t row_bytes = e.cols * ByteWidth(e.dtype);
  // A vector that spans all columns may end anywhere; others end where a unit does.
  const bool one_group = e.vector_length >= e.cols;
  const int64_t group_bytes = one_group ? row_bytes : int64_t{e.vector_length} * ByteWidth(e.dtype);
  int64_t unit_bytes = 16;
  while ((row_bytes | group_bytes | Bits(values) | Bits(dense)) % unit_bytes != 0) unit_bytes /= 2;
  if (unit_bytes < ByteWidth(e.dtype)) return cudaErrorMisalignedAddress;

  ExpandArgs args{};
  args.values = values;
  args.indices = indices;
  args.dense = dense;
  args.depth = e.depth;
  args.kept = e.kept;
  args.groups = e.groups;
  args.units = row_bytes / unit_bytes;
  args.pitch = static_cast<uint32_t>(row_bytes);
  args.group_units = group_bytes / unit_bytes;
  args.n = e.n;
  args.m = e.m;
  args.tile_windows = std::max(1, kTileRows / e.m);
  const int64_t tile_rows = int64_t{args.tile_windows} * e.m;

  // 512 bytes, or as many units as half of the threads.
  int32_t bits = unit_bytes == 16 ? 5 : unit_bytes == 8 ? 6 : 7;
  const auto groups = [&] {
    return std::min(GroupsTouched(int64_t{1} << bits, args.group_units), e.groups);
  };
  while (bits > 0 &&
         ((int64_t{1} << (bits - 1)) >= args.units || groups() * tile_rows > kMaxEntries)) {
    --bits;
  }
  args.width_bits = bits;
  args.tile_groups = static_cast<int32_t>(groups());

  const int64_t width = int64_t{1} << bits;
  const int64_t across = (args.units + width - 1) / width;
  const int64_t down = (e.depth + tile_rows - 1) / tile_rows;
  if (across > INT32_MAX) return cudaErrorInvalidConfiguration;
  const size_t shared_bytes = static_cast<size_t>(tile_rows * args.tile_groups) * sizeof(uint32_t);
  void* parameters[] = {&args};
  for (args.first_batch = 0; args.first_batch < e.batch; args.first_batch += kMaxGridYZ) {
    for (args.first_tile = 0; args.first_tile < down; args.first_tile += kMaxGridYZ) {
      const dim3 grid(static_cast<unsigned>(across),
                      static_cast<unsigned>(std::min(down - args.first_tile, kMaxGridYZ)),
                      static_cast<unsigned>(std::min(e.batch - args.first_batch, kMaxGridYZ)));
      const cudaError_t error = cudaLaunchKernel(FunctionOf(unit_bytes), grid, dim3(kExpandThreads),
                                                 parameters, shared_bytes, stream);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace jax_nm
