#include <cuda.h>

#include <algorithm>
#include <initializer_list>

#include "dispatch.h"
#include "kernels.h"
#include "launch_args.h"
#include "launch_hopper.h"
#include "reduce.cuh"
#include "skinny_config.h"
#include "tuning_hopper.h"
#include "tuning_mma.h"
#include "tuning_short.h"
#include "tuning_split.h"

namespace jax_nm {
namespace {

constexpr int64_t kMaxGrid = (int64_t{1} << 31) - 1;
constexpr int64_t kReduceBlocks = 4096;

KernelTable TableOf(const Problem& p, const Config& config) {
  using Make = KernelTable (*)();
  constexpr Make kTables[3][3] = {
      {SpmmFloat32, SpmmBFloat16, SpmmFloat16},
      {SpmmTFloat32, SpmmTBFloat16, SpmmTFloat16},
      {SddmmFloat32, SddmmBFloat16, SddmmFloat16},
  };
  constexpr Make kMmaTables[3] = {SpmmMmaFloat32, SpmmMmaBFloat16, SpmmMmaFloat16};
  constexpr Make kSkinnyTables[3] = {SpmmSkinnyFloat32, SpmmSkinnyBFloat16, SpmmSkinnyFloat16};
  if (IsFfma(config.kernel)) return SpmmFfmaFloat32();
  const Make* tables = IsMma(config.kernel)      ? kMmaTables
                       : IsSkinny(config.kernel) ? kSkinnyTables
                                                 : kTables[static_cast<int>(p.op)];
  return tables[static_cast<int>(p.dtype)]();
}

#ifdef JAX_NM_HAVE_SM90A
KernelTable HopperTableOf(const Problem& p, const Config& config) {
  if (IsSkinnyBulk(config.kernel)) {
    return p.dtype == DType::kBFloat16 ? HopperSkinnyBFloat16() : HopperSkinnyFloat16();
  }
  if (IsSplitSddmm(config.kernel)) return HopperSplitSddmmFloat32();
  if (IsSplit(config.kernel)) return HopperSplitFloat32();
  const bool float_result = p.result_dtype == DType::kFloat32;
  const bool bfloat16 = p.dtype == DType::kBFloat16;
  if (IsShort(config.kernel)) {
    return bfloat16 ? HopperShortBFloat16(float_result) : HopperShortFloat16(float_result);
  }
  if (p.op == Op::kSpmmT) {
    return bfloat16 ? HopperSpmmTBFloat16(float_result) : HopperSpmmTFloat16(float_result);
  }
  if (IsTf32(config.kernel)) return HopperTf32Float32();
  if (p.dtype == DType::kFloat32) return HopperFloat32();
  return bfloat16 ? HopperBFloat16(float_result) : HopperFloat16(float_result);
}
#else
KernelTable HopperTableOf(const Problem&, const Config&) { return {nullptr, 0}; }
#endif

// Null if there is none: `Choose` rules that out.
KernelEntry* FindEntry(const Problem& p, const Config& config) {
  const KernelTable table =
      NeedsSm90a(config.kernel) ? HopperTableOf(p, config) : TableOf(p, config);
  for (int32_t i = 0; i < table.count; ++i) {
    KernelEntry& entry = table.entries[i];
    if (entry.kernel == config.kernel && entry.variant == VariantOf(config)) return &entry;
  }
  return nullptr;
}

// Blocks [first_tile, ...) of all kernels but Hopper's; those of a cluster share a tile. `values`
// is read by the skinny kernels that copy them in bulk, which alone have a second parameter.
cudaError_t LaunchTiles(const void* function, const Config& config, KernelArgs args,
                        CUtensorMap values, int64_t tiles, cudaStream_t stream) {
  const int32_t cluster = std::max(config.cluster, 1);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t launch{};
  launch.blockDim = dim3(static_cast<unsigned>(config.threads));
  launch.dynamicSmemBytes = static_cast<size_t>(config.shared_bytes);
  launch.stream = stream;
  launch.attrs = &attribute;
  launch.numAttrs = cluster > 1 ? 1 : 0;
  void* parameters[] = {&args, &values};
  const int64_t most = kMaxGrid / cluster;
  for (; args.first_tile < tiles; args.first_tile += most) {
    const int64_t blocks = std::min(tiles - args.first_tile, most) * cluster;
    launch.gridDim = dim3(static_cast<unsigned>(blocks));
    const cudaError_t error = cudaLaunchKernelExC(&launch, function, parameters);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class Out, int kVector>
cudaError_t LaunchReduce(const ReduceArgs& args, cudaStream_t stream) {
  constexpr int64_t kElements = int64_t{kReduceThreads} * kVector;
  const int64_t blocks = (args.elements + kElements - 1) / kElements;
  ReduceKernel<Out, kVector>
      <<<static_cast<unsigned>(std::min(blocks, kReduceBlocks)), kReduceThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

template <class Out>
cudaError_t Reduce(const ReduceArgs& args, cudaStream_t stream) {
  bool vector = args.elements % 4 == 0;
  for (const void* data :
       std::initializer_list<const void*>{args.partials, args.result, args.epilogue.sum}) {
    vector = vector && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  }
  return vector ? LaunchReduce<Out, 4>(args, stream) : LaunchReduce<Out, 1>(args, stream);
}

int64_t ResultElements(const Problem& p) {
  return p.op == Op::kSpmm    ? p.batch * p.rows * p.cols
         : p.op == Op::kSpmmT ? p.batch * p.rows * p.depth
                              : p.batch * p.kept * p.cols;
}

}  // namespace

cudaError_t Prepare(const Problem& p, const Config& config, int device) {
  KernelEntry* entry = FindEntry(p, config);
  if (entry == nullptr) return cudaErrorInvalidDeviceFunction;
  const bool tracked = device < 64;
  const uint64_t bit = tracked ? uint64_t{1} << device : 0;
  if (tracked && (entry->prepared.load(std::memory_order_acquire) & bit) != 0) return cudaSuccess;
  int limit = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(entry->function, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  if (error != cudaSuccess) return error;
  if (NeedsSm90a(config.kernel)) {
    error = PrepareHopper();
    if (error != cudaSuccess) return error;
  }
  entry->prepared.fetch_or(bit, std::memory_order_release);
  return cudaSuccess;
}

cudaError_t Launch(const Problem& p, const Config& config, const Buffers& b, cudaStream_t stream) {
  const int64_t elements = ResultElements(p);
  if (elements == 0) return cudaSuccess;
  KernelEntry* entry = FindEntry(p, config);
  if (entry == nullptr) return cudaErrorInvalidDeviceFunction;
  if (IsTf32(config.kernel)) return LaunchTf32(p, config, entry->function, b, stream);
  if (IsHopper(config.kernel)) return LaunchHopper(p, config, entry->function, b, stream);
  if (IsShort(config.kernel) || IsSplit(config.kernel)) {
    return LaunchShort(p, config, entry->function, b, stream);
  }
  const KernelArgs args = MakeKernelArgs(p, config, b);
  const bool aligned = IsMma(config.kernel) || IsFfma(config.kernel);
  if (aligned && !(args.first_vector && args.second_vector)) {
    return cudaErrorMisalignedAddress;
  }
  CUtensorMap values{};
  if (args.bulk_values) {
    const cudaError_t error = MakeValuesMap(p, config, b.second, &values);
    if (error != cudaSuccess) return error;
  }
  const int64_t tiles = p.batch * args.outer_tiles * args.inner_tiles * config.split;
  const cudaError_t error = LaunchTiles(entry->function, config, args, values, tiles, stream);
  if (error != cudaSuccess) return error;
  if (config.split == 1) return cudaSuccess;
  const ReduceArgs reduce{
      args.partials,    config.split, elements, b.result,
      EpilogueOf(p, b), p.rows,       p.cols,   args.result_feature_major,
  };
  switch (p.result_dtype) {
    case DType::kFloat32:
      return Reduce<float>(reduce, stream);
    case DType::kBFloat16:
      return Reduce<__nv_bfloat16>(reduce, stream);
    case DType::kFloat16:
      return Reduce<__half>(reduce, stream);
    case DType::kFloat64:
      break;
  }
  return cudaErrorInvalidValue;
}

std::vector<int> BuiltArchs() {
  std::vector<int> archs;
  for (int arch : {__CUDA_ARCH_LIST__}) archs.push_back(arch / 10);
  return archs;
}

bool HasHopperKernels() {
#ifdef JAX_NM_HAVE_SM90A
  return true;
#else
  return false;
#endif
}

}  // namespace jax_nm
