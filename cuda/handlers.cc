#include "handlers.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "expand.h"
#include "ffi_problem.h"
#include "tuning.h"

namespace jax_nm {
namespace {

using Indices = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

ffi::Error CudaError(const char* what, cudaError_t error) {
  return ffi::Error(ffi::ErrorCode::kInternal, std::string("jax_nm: ") + what +
                                                   " failed: " + cudaGetErrorString(error) + " (" +
                                                   cudaGetErrorName(error) + ")");
}

struct DeviceInfo {
  int ordinal;
  int arch;
  int num_sms;
  bool wgmma;  // runs code for sm_90a, and this build holds it
};

// Of the device that XLA has made current. Attributes never change, so each is asked for once.
cudaError_t CurrentDevice(DeviceInfo* info) {
  static std::mutex mutex;
  static std::map<int, DeviceInfo> known;
  int ordinal = 0;
  if (cudaError_t error = cudaGetDevice(&ordinal); error != cudaSuccess) return error;
  std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(ordinal); found != known.end()) {
    *info = found->second;
    return cudaSuccess;
  }
  int major = 0, minor = 0, num_sms = 0;
  for (auto [value, attribute] : {std::pair{&major, cudaDevAttrComputeCapabilityMajor},
                                  std::pair{&minor, cudaDevAttrComputeCapabilityMinor},
                                  std::pair{&num_sms, cudaDevAttrMultiProcessorCount}}) {
    if (cudaError_t error = cudaDeviceGetAttribute(value, attribute, ordinal);
        error != cudaSuccess) {
      return error;
    }
  }
  const bool wgmma = major == 9 && minor == 0 && HasHopperKernels();
  // Code for older devices launches no clusters, so a device that runs it counts as one of them.
  int arch = major * 10 + minor;
  const std::vector<int> built = BuiltArchs();
  const bool clusters = std::any_of(built.begin(), built.end(), [=](int b) {
    return b >= 90 && b <= arch && b / 10 == arch / 10;
  });
  if (!clusters) arch = std::min(arch, 89);
  *info = {ordinal, arch, num_sms, wgmma};
  known.emplace(ordinal, *info);
  return cudaSuccess;
}

using ProblemKey = std::tuple<int, int, int, int64_t, int64_t, int64_t, int64_t, int64_t, int, int,
                              int, int, int, bool, bool, int, int, int, bool, bool, int64_t, int>;

ProblemKey KeyOf(const Problem& p, int64_t workspace_bytes, int ordinal) {
  return {static_cast<int>(p.op),
          static_cast<int>(p.dtype),
          static_cast<int>(p.result_dtype),
          p.batch,
          p.rows,
          p.depth,
          p.cols,
          p.values_cols,
          p.n,
          p.m,
          p.vector_length,
          static_cast<int>(p.x_layout),
          static_cast<int>(p.y_layout),
          p.values_transposed,
          p.allow_tf32,
          p.kernel,
          p.arch,
          static_cast<int>(p.activation),
          p.has_bias,
          p.emits_sum,
          workspace_bytes,
          ordinal};
}

// The choice is pure but takes tens of microseconds, and a handler may be called many times for one
// compiled program. A process that sees ever new shapes starts over now and then.
constexpr size_t kMaxKnownConfigs = 4096;

ffi::ErrorOr<Config> ConfigOf(const Problem& p, const DeviceInfo& device, int64_t workspace_bytes) {
  static std::mutex mutex;
  static std::map<ProblemKey, Config> known;
  const ProblemKey key = KeyOf(p, workspace_bytes, device.ordinal);
  std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  const Choice choice = Choose(p, device.arch, device.num_sms, device.wgmma, workspace_bytes);
  if (choice.chosen.verdict != Verdict::kChosen) {
    return ffi::Unexpected(
        ffi::Error::InvalidArgument("jax_nm: " + Reason(p, choice, choice.chosen)));
  }
  if (known.size() >= kMaxKnownConfigs) known.clear();
  known.emplace(key, choice.chosen.config);
  return choice.chosen.config;
}

// Both stages: what is to be run, and the kernel ready to be launched.
struct Prepared {
  Problem problem;
  Config config;
};

ffi::ErrorOr<Prepared> PrepareCall(const ffi::ErrorOr<Problem>& problem,
                                   const ffi::AnyBuffer& workspace) {
  if (problem.has_error()) return ffi::Unexpected(problem.error());
  if (workspace.element_type() != ffi::U8) {
    return ffi::Unexpected(ffi::Error::InvalidArgument("jax_nm: expected a workspace of uint8"));
  }
  DeviceInfo device{};
  if (cudaError_t error = CurrentDevice(&device); error != cudaSuccess) {
    return ffi::Unexpected(CudaError("querying the device", error));
  }
  ffi::ErrorOr<Config> config =
      ConfigOf(problem.value(), device, static_cast<int64_t>(workspace.element_count()));
  if (config.has_error()) return ffi::Unexpected(config.error());
  if (cudaError_t error = Prepare(problem.value(), config.value(), device.ordinal);
      error != cudaSuccess) {
    return ffi::Unexpected(CudaError("loading the kernel", error));
  }
  return Prepared{problem.value(), config.value()};
}

ffi::Error InitializeCall(const ffi::ErrorOr<Problem>& problem, const ffi::AnyBuffer& workspace) {
  const ffi::ErrorOr<Prepared> call = PrepareCall(problem, workspace);
  return call.has_error() ? call.error() : ffi::Error::Success();
}

ffi::Error ExecuteCall(const ffi::ErrorOr<Problem>& problem, const ffi::AnyBuffer& workspace,
                       const Buffers& buffers, cudaStream_t stream) {
  const ffi::ErrorOr<Prepared> call = PrepareCall(problem, workspace);
  if (call.has_error()) return call.error();
  if (cudaError_t error = Launch(call->problem, call->config, buffers, stream);
      error != cudaSuccess) {
    return CudaError("launching the kernel", error);
  }
  return ffi::Error::Success();
}

const uint8_t* Bytes(const Indices& indices) {
  return static_cast<const uint8_t*>(indices.untyped_data());
}

template <Op kOp>
ffi::Error Initialize(ffi::AnyBuffer first, ffi::AnyBuffer second, Indices indices, Result result,
                      Result workspace, int32_t n, int32_t m, int32_t vector_length, int32_t layout,
                      int32_t flags, int32_t kernel, int32_t arch) {
  const Attributes attributes{n, m, vector_length, layout, flags, kernel, arch};
  return InitializeCall(MakeProblem(kOp, attributes, first, second, indices, *result), *workspace);
}

template <Op kOp>
ffi::Error Execute(cudaStream_t stream, ffi::AnyBuffer first, ffi::AnyBuffer second,
                   Indices indices, Result result, Result workspace, int32_t n, int32_t m,
                   int32_t vector_length, int32_t layout, int32_t flags, int32_t kernel,
                   int32_t arch) {
  const Attributes attributes{n, m, vector_length, layout, flags, kernel, arch};
  const Buffers buffers{first.untyped_data(),   second.untyped_data(),     Bytes(indices),
                        result->untyped_data(), workspace->untyped_data(),
                        /*bias=*/nullptr,
                        /*sum=*/nullptr};
  return ExecuteCall(MakeProblem(kOp, attributes, first, second, indices, *result), *workspace,
                     buffers, stream);
}

ffi::Error InitializeFused(ffi::AnyBuffer x, ffi::AnyBuffer values, Indices indices,
                           ffi::AnyBuffer bias, Result y, Result sum, Result workspace, int32_t n,
                           int32_t m, int32_t vector_length, int32_t layout, int32_t flags,
                           int32_t kernel, int32_t arch, int32_t activation) {
  const Attributes attributes{n, m, vector_length, layout, flags, kernel, arch};
  return InitializeCall(
      MakeFusedProblem(attributes, activation, x, values, indices, bias, *y, *sum), *workspace);
}

ffi::Error ExecuteFused(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer values,
                        Indices indices, ffi::AnyBuffer bias, Result y, Result sum,
                        Result workspace, int32_t n, int32_t m, int32_t vector_length,
                        int32_t layout, int32_t flags, int32_t kernel, int32_t arch,
                        int32_t activation) {
  const Attributes attributes{n, m, vector_length, layout, flags, kernel, arch};
  const Buffers buffers{
      x.untyped_data(),   values.untyped_data(),     Bytes(indices),
      y->untyped_data(),  workspace->untyped_data(), static_cast<const float*>(bias.untyped_data()),
      sum->untyped_data()};
  return ExecuteCall(MakeFusedProblem(attributes, activation, x, values, indices, bias, *y, *sum),
                     *workspace, buffers, stream);
}

ffi::Error InitializeExpand(ffi::AnyBuffer values, Indices indices, Result dense, int32_t n,
                            int32_t m, int32_t vector_length) {
  const ffi::ErrorOr<Expansion> expansion =
      MakeExpansion(n, m, vector_length, values, indices, *dense);
  if (expansion.has_error()) return expansion.error();
  DeviceInfo device{};
  if (cudaError_t error = CurrentDevice(&device); error != cudaSuccess) {
    return CudaError("querying the device", error);
  }
  if (cudaError_t error = PrepareExpand(device.ordinal); error != cudaSuccess) {
    return CudaError("loading the kernel", error);
  }
  return ffi::Error::Success();
}

ffi::Error ExecuteExpand(cudaStream_t stream, ffi::AnyBuffer values, Indices indices, Result dense,
                         int32_t n, int32_t m, int32_t vector_length) {
  const ffi::ErrorOr<Expansion> expansion =
      MakeExpansion(n, m, vector_length, values, indices, *dense);
  if (expansion.has_error()) return expansion.error();
  if (cudaError_t error = LaunchExpand(expansion.value(), values.untyped_data(), Bytes(indices),
                                       dense->untyped_data(), stream);
      error != cudaSuccess) {
    return CudaError("launching the kernel", error);
  }
  return ffi::Error::Success();
}

// The attributes of every product, in the order of the contract.
template <class Binding>
auto BindAttributes(Binding binding) {
  return std::move(binding)
      .template Attr<int32_t>("n")
      .template Attr<int32_t>("m")
      .template Attr<int32_t>("vector_length")
      .template Attr<int32_t>("layout")
      .template Attr<int32_t>("flags")
      .template Attr<int32_t>("kernel")
      .template Attr<int32_t>("arch");
}

template <class Binding>
auto BindCall(Binding binding) {
  return BindAttributes(std::move(binding)
                            .template Arg<ffi::AnyBuffer>()
                            .template Arg<ffi::AnyBuffer>()
                            .template Arg<ffi::AnyBuffer>()
                            .template Ret<ffi::AnyBuffer>()
                            .template Ret<ffi::AnyBuffer>());
}

template <class Binding>
auto BindFusedCall(Binding binding) {
  return BindAttributes(std::move(binding)
                            .template Arg<ffi::AnyBuffer>()
                            .template Arg<ffi::AnyBuffer>()
                            .template Arg<ffi::AnyBuffer>()
                            .template Arg<ffi::AnyBuffer>()
                            .template Ret<ffi::AnyBuffer>()
                            .template Ret<ffi::AnyBuffer>()
                            .template Ret<ffi::AnyBuffer>())
      .template Attr<int32_t>("activation");
}

template <class Binding>
auto BindExpand(Binding binding) {
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()
      .template Arg<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Attr<int32_t>("n")
      .template Attr<int32_t>("m")
      .template Attr<int32_t>("vector_length");
}

auto InitializeStage() { return ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>(); }
auto ExecuteStage() { return ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>(); }

XLA_FFI_DEFINE_HANDLER(kSpmmInitialize, Initialize<Op::kSpmm>, BindCall(InitializeStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSpmmExecute, Execute<Op::kSpmm>, BindCall(ExecuteStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSpmmTInitialize, Initialize<Op::kSpmmT>, BindCall(InitializeStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSpmmTExecute, Execute<Op::kSpmmT>, BindCall(ExecuteStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSddmmInitialize, Initialize<Op::kSddmm>, BindCall(InitializeStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSddmmExecute, Execute<Op::kSddmm>, BindCall(ExecuteStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSpmmFusedInitialize, InitializeFused, BindFusedCall(InitializeStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSpmmFusedExecute, ExecuteFused, BindFusedCall(ExecuteStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kExpandInitialize, InitializeExpand, BindExpand(InitializeStage()),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kExpandExecute, ExecuteExpand, BindExpand(ExecuteStage()),
                       {ffi::Traits::kCmdBufferCompatible});

}  // namespace

const Handler kHandlers[kHandlerCount] = {
    {"jax_nm.spmm.v1", kSpmmInitialize, kSpmmExecute},
    {"jax_nm.spmm_t.v1", kSpmmTInitialize, kSpmmTExecute},
    {"jax_nm.sddmm.v1", kSddmmInitialize, kSddmmExecute},
    {"jax_nm.spmm_fused.v1", kSpmmFusedInitialize, kSpmmFusedExecute},
    {"jax_nm.expand.v1", kExpandInitialize, kExpandExecute},
};

}  // namespace jax_nm
