// The dense weight:  dense[source(g, j), c] = values[j, c], zeros elsewhere.
//
// A block owns some windows by some columns. Which slot holds a row of its windows, for each of its
// groups, it writes into a table in shared memory; then every thread walks down the rows of one
// unit of columns, reads its slot's values or takes zeros, and writes. Bytes are moved and never
// looked at, so the kernel knows units of 2 to 16 bytes and no dtype.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ptx.cuh"

namespace jax_nm {

constexpr int32_t kExpandThreads = 256;
constexpr uint32_t kNoSlot = 0xffffffffu;

struct ExpandArgs {
  const void* values;
  const uint8_t* indices;
  void* dense;
  int64_t depth;
  int64_t kept;
  int64_t groups;
  int64_t units;        // of a row
  uint32_t pitch;       // bytes of a row
  int64_t group_units;  // that a group spans
  int64_t first_batch;  // of the launch
  int64_t first_tile;   // along windows
  int32_t n;
  int32_t m;
  int32_t tile_windows;
  int32_t tile_groups;  // that the units of a tile touch at most
  int32_t width_bits;   // a tile is 2^width_bits units wide
};

template <int kUnitBytes>
struct ExpandUnit;
template <>
struct ExpandUnit<2> {
  using Type = unsigned short;
};
template <>
struct ExpandUnit<4> {
  using Type = unsigned int;
};
template <>
struct ExpandUnit<8> {
  using Type = uint2;
};
template <>
struct ExpandUnit<16> {
  using Type = uint4;
};

template <int kUnitBytes>
struct ExpandBlock {
  using Unit = typename ExpandUnit<kUnitBytes>::Type;
  // Reads in flight: 64 bytes of each thread, at 6 blocks on an SM three times what covers the
  // latency of memory.
  static constexpr int kAhead = kUnitBytes == 16 ? 4 : 8;

  const ExpandArgs& args;
  uint32_t* table;  // [tile_rows][tile_groups]: the slot that holds a row, counted from slot0
  int64_t batch, row0, slot0, unit0, group0;
  int32_t rows, slots, groups;  // of the tile, inside the matrix

  __device__ __forceinline__ ExpandBlock(const ExpandArgs& a, uint32_t* shared)
      : args(a), table(shared) {
    batch = a.first_batch + blockIdx.z;
    const int64_t window0 = (a.first_tile + blockIdx.y) * a.tile_windows;
    row0 = window0 * a.m;
    slot0 = window0 * a.n;
    unit0 = int64_t{blockIdx.x} << a.width_bits;
    group0 = unit0 / a.group_units;
    rows = static_cast<int32_t>(min(int64_t{a.tile_windows * a.m}, a.depth - row0));
    slots = static_cast<int32_t>(min(int64_t{a.tile_windows * a.n}, a.kept - slot0));
    groups = static_cast<int32_t>(min(int64_t{a.tile_groups}, a.groups - group0));
  }

  __device__ __forceinline__ void Clear() const {
    const int32_t entries = args.tile_windows * args.m * args.tile_groups;
    for (int32_t i = threadIdx.x; i < entries; i += kExpandThreads) table[i] = kNoSlot;
  }

  // Where indices repeat, which only malformed ones do, the first slot holds the row.
  __device__ __forceinline__ void Fill() const {
    constexpr int kFetched = 4;
    const uint8_t* indices = args.indices + (batch * args.groups + group0) * args.kept + slot0;
    const int32_t count = groups * slots;
#pragma unroll 1
    for (int32_t i0 = threadIdx.x; i0 < count; i0 += kFetched * kExpandThreads) {
      int32_t group[kFetched], slot[kFetched], byte[kFetched];
#pragma unroll
      for (int k = 0; k < kFetched; ++k) {
        const int32_t i = i0 + k * kExpandThreads;
        group[k] = i / slots;
        slot[k] = i - group[k] * slots;
        byte[k] = i < count ? indices[group[k] * args.kept + slot[k]] : 0;
      }
#pragma unroll
      for (int k = 0; k < kFetched; ++k) {
        const int32_t window = slot[k] / args.n;
        const int32_t window_row = window * args.m;
        // IsPadding and Source of problem.h: `rows` ends where the depth does.
        const bool is_padding = window_row + slot[k] - window * args.n >= rows;
        const int32_t row = min(window_row + min(byte[k], args.m - 1), rows - 1);
        if (i0 + k * kExpandThreads < count && !is_padding) {
          atomicMin(&table[row * args.tile_groups + group[k]], static_cast<uint32_t>(slot[k]));
        }
      }
    }
  }

  // Values are read once and make room in L2 for the dense weight, which is read next.
  __device__ __forceinline__ void Copy() const {
    const int32_t local = threadIdx.x & ((1 << args.width_bits) - 1);
    const int64_t unit = unit0 + local;
    if (unit >= args.units) return;
    // Addresses, which the compiler would otherwise compute anew for each row.
    uint32_t held =
        ptx::SharedAddress(table + static_cast<int32_t>(unit / args.group_units - group0));
    uint64_t from = reinterpret_cast<uint64_t>(args.values) +
                    (batch * args.kept + slot0) * args.pitch + unit * kUnitBytes;
    uint64_t to = reinterpret_cast<uint64_t>(args.dense) +
                  (batch * args.depth + row0) * args.pitch + unit * kUnitBytes;
    ptx::KeepInRegister(held);
    ptx::KeepInRegister(from);
    ptx::KeepInRegister(to);
    const uint64_t pitch = args.pitch;
    const int32_t pass = kExpandThreads >> args.width_bits;
#pragma unroll 1
    for (int32_t first = threadIdx.x >> args.width_bits; first < rows; first += kAhead * pass) {
      uint32_t slot[kAhead];
      Unit moved[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int32_t row = first + k * pass;
        slot[k] = row < rows ? ptx::LoadShared4(held + row * args.tile_groups * 4) : kNoSlot;
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        moved[k] = Unit{};
        if (slot[k] != kNoSlot) {
          moved[k] = __ldcs(reinterpret_cast<const Unit*>(from + slot[k] * pitch));
        }
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int32_t row = first + k * pass;
        if (row < rows) {
          __stwb(reinterpret_cast<Unit*>(to + static_cast<uint32_t>(row) * pitch), moved[k]);
        }
      }
    }
  }
};

template <int kUnitBytes>
__global__ void __launch_bounds__(kExpandThreads, 6)
    ExpandKernel(const __grid_constant__ ExpandArgs args) {
  extern __shared__ uint32_t expand_table[];
  const ExpandBlock<kUnitBytes> block(args, expand_table);
  block.Clear();
  __syncthreads();
  block.Fill();
  __syncthreads();
  block.Copy();
}

}  // namespace jax_nm
