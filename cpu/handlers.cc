#include "handlers.h"

#include <atomic>
#include <memory>
#include <new>
#include <string>

#include "dispatch.h"
#include "ffi_problem.h"
#include "thread_pool.h"

namespace jax_nm {
namespace {

bool IsAligned(const void* data, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(ByteWidth(dtype)) == 0;
}

struct AlignedDelete {
  void operator()(void* data) const {
    ::operator delete(data, std::align_val_t{kScratchAlignment});
  }
};

std::unique_ptr<void, AlignedDelete> AllocateScratch(int64_t bytes) {
  return std::unique_ptr<void, AlignedDelete>(::operator new(
      static_cast<size_t>(bytes), std::align_val_t{kScratchAlignment}, std::nothrow));
}

ffi::Error Run(Op op, ffi::ThreadPool pool, const ffi::AnyBuffer& first,
               const ffi::AnyBuffer& second, const ffi::AnyBuffer& indices,
               const ffi::AnyBuffer& result, const Attributes& attributes) {
  const ffi::ErrorOr<Problem> problem = MakeProblem(op, attributes, first, second, indices, result);
  if (problem.has_error()) return problem.error();
  if (problem->values_cols != problem->cols || problem->values_transposed) {
    return ffi::Error::InvalidArgument(
        "jax_nm: the CPU kernels take no padded or transposed values");
  }
  const DType dtype = problem->dtype;
  if (!IsAligned(first.untyped_data(), dtype) || !IsAligned(second.untyped_data(), dtype) ||
      !IsAligned(result.untyped_data(), problem->result_dtype)) {
    return ffi::Error::InvalidArgument("jax_nm: expected buffers aligned to their element size");
  }

  const Plan plan = MakePlan(*problem, pool.num_threads());
  if (!plan.error.empty()) return ffi::Error::InvalidArgument("jax_nm: " + plan.error);

  const Job job{*problem,
                plan.config,
                first.untyped_data(),
                second.untyped_data(),
                static_cast<const uint8_t*>(indices.untyped_data()),
                result.untyped_data()};
  std::atomic<bool> out_of_memory{false};
  RunTasks(pool, plan.config.tasks, [&](int64_t task, TaskCounter& counter) {
    const auto scratch = AllocateScratch(plan.config.scratch_bytes);
    if (!scratch) out_of_memory = true;
    int64_t finished = 0;
    for (; task >= 0; task = counter.Take(), ++finished) {
      if (scratch) plan.function(job, task, scratch.get());
    }
    return finished;
  });
  if (out_of_memory) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "jax_nm: no memory for " + std::to_string(plan.config.scratch_bytes) +
                          " bytes of scratch per thread");
  }
  return ffi::Error::Success();
}

template <Op op>
ffi::Error Handle(ffi::ThreadPool pool, ffi::AnyBuffer first, ffi::AnyBuffer second,
                  ffi::AnyBuffer indices, ffi::Result<ffi::AnyBuffer> result, int32_t n, int32_t m,
                  int32_t vector_length, int32_t layout, int32_t flags, int32_t kernel,
                  int32_t arch) {
  return Run(op, pool, first, second, indices, *result,
             Attributes{n, m, vector_length, layout, flags, kernel, arch});
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<int32_t>("n")
      .Attr<int32_t>("m")
      .Attr<int32_t>("vector_length")
      .Attr<int32_t>("layout")
      .Attr<int32_t>("flags")
      .Attr<int32_t>("kernel")
      .Attr<int32_t>("arch");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SpmmHandler, Handle<Op::kSpmm>, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SpmmTHandler, Handle<Op::kSpmmT>, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(SddmmHandler, Handle<Op::kSddmm>, Binding());

}  // namespace jax_nm
