#include "handlers.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

#include "dispatch.h"
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
  *info = {ordinal, major * 10 + minor, num_sms, wgmma};
  known.emplace(ordinal, *info);
  return cudaSuccess;
}

using ProblemKey = std::tuple<int, int, int, int64_t, int64_t, int64_t, int64_t, int, int, int, int,
                              int, bool, int, int, int64_t, int>;

ProblemKey KeyOf(const Problem& p, int64_t workspace_bytes, int ordinal) {
  return {static_cast<int>(p.op),
          static_cast<int>(p.dtype),
          static_cast<int>(p.result_dtype),
          p.batch,
          p.rows,
          p.depth,
          p.cols,
          p.n,
          p.m,
          p.vector_length,
          static_cast<int>(p.x_layout),
          static_cast<int>(p.y_layout),
          p.allow_tf32,
          p.kernel,
          p.arch,
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

ffi::ErrorOr<Prepared> PrepareCall(Op op, const Attributes& attributes, const ffi::AnyBuffer& first,
                                   const ffi::AnyBuffer& second, const ffi::AnyBuffer& indices,
                                   const ffi::AnyBuffer& result, const ffi::AnyBuffer& workspace) {
  ffi::ErrorOr<Problem> problem = MakeProblem(op, attributes, first, second, indices, result);
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

template <Op kOp>
ffi::Error Initialize(ffi::AnyBuffer first, ffi::AnyBuffer second, Indices indices, Result result,
                      Result workspace, int32_t n, int32_t m, int32_t vector_length, int32_t layout,
                      int32_t flags, int32_t kernel, int32_t arch) {
  const Attributes attributes{n, m, vector_length, layout, flags, kernel, arch};
  ffi::ErrorOr<Prepared> call =
      PrepareCall(kOp, attributes, first, second, indices, *result, *workspace);
  return call.has_error() ? call.error() : ffi::Error::Success();
}

template <Op kOp>
ffi::Error Execute(cudaStream_t stream, ffi::AnyBuffer first, ffi::AnyBuffer second,
                   Indices indices, Result result, Result workspace, int32_t n, int32_t m,
                   int32_t vector_length, int32_t layout, int32_t flags, int32_t kernel,
                   int32_t arch) {
  const Attributes attributes{n, m, vector_length, layout, flags, kernel, arch};
  ffi::ErrorOr<Prepared> call =
      PrepareCall(kOp, attributes, first, second, indices, *result, *workspace);
  if (call.has_error()) return call.error();
  const Buffers buffers{first.untyped_data(), second.untyped_data(),
                        static_cast<const uint8_t*>(indices.untyped_data()), result->untyped_data(),
                        workspace->untyped_data()};
  const Prepared& prepared = call.value();
  if (cudaError_t error = Launch(prepared.problem, prepared.config, buffers, stream);
      error != cudaSuccess) {
    return CudaError("launching the kernel", error);
  }
  return ffi::Error::Success();
}

// The operands, results and attributes of every target, in the order of the contract.
template <class Binding>
auto BindCall(Binding binding) {
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()
      .template Arg<ffi::AnyBuffer>()
      .template Arg<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Ret<ffi::AnyBuffer>()
      .template Attr<int32_t>("n")
      .template Attr<int32_t>("m")
      .template Attr<int32_t>("vector_length")
      .template Attr<int32_t>("layout")
      .template Attr<int32_t>("flags")
      .template Attr<int32_t>("kernel")
      .template Attr<int32_t>("arch");
}

auto InitializeBinding() { return BindCall(ffi::Ffi::Bind<ffi::ExecutionStage::kInitialize>()); }
auto ExecuteBinding() {
  return BindCall(ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>());
}

XLA_FFI_DEFINE_HANDLER(kSpmmInitialize, Initialize<Op::kSpmm>, InitializeBinding(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSpmmExecute, Execute<Op::kSpmm>, ExecuteBinding(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSpmmTInitialize, Initialize<Op::kSpmmT>, InitializeBinding(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSpmmTExecute, Execute<Op::kSpmmT>, ExecuteBinding(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSddmmInitialize, Initialize<Op::kSddmm>, InitializeBinding(),
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kSddmmExecute, Execute<Op::kSddmm>, ExecuteBinding(),
                       {ffi::Traits::kCmdBufferCompatible});

}  // namespace

const Handler kHandlers[kHandlerCount] = {
    {"jax_nm.spmm.v1", kSpmmInitialize, kSpmmExecute},
    {"jax_nm.spmm_t.v1", kSpmmTInitialize, kSpmmTExecute},
    {"jax_nm.sddmm.v1", kSddmmInitialize, kSddmmExecute},
};

}  // namespace jax_nm
