// The Python module jax_nm._cpu.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <thread>

#include "dispatch.h"
#include "handlers.h"
#include "named_problem.h"

namespace jax_nm {
namespace {

namespace nb = nanobind;

nb::dict Registrations() {
  const auto capsule = [](XLA_FFI_Handler* handler) {
    return nb::capsule(reinterpret_cast<void*>(handler));
  };
  nb::dict targets;
  targets["jax_nm.spmm.v1"] = capsule(SpmmHandler);
  targets["jax_nm.spmm_t.v1"] = capsule(SpmmTHandler);
  targets["jax_nm.sddmm.v1"] = capsule(SddmmHandler);
  return targets;
}

nb::dict PlanFor(const std::string& op, const std::string& dtype, const std::string& result_dtype,
                 int64_t batch, int64_t rows, int64_t depth, int64_t cols, int32_t n, int32_t m,
                 int32_t vector_length, bool x_feature_major, bool y_feature_major,
                 int32_t kernel) {
  // TF32 and architectures are matters of GPUs.
  const Problem p =
      NamedProblem(op, dtype, result_dtype, batch, rows, depth, cols, n, m, vector_length,
                   x_feature_major, y_feature_major, /*allow_tf32=*/false, kernel, /*arch=*/0);
  const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  const Plan plan = MakePlan(p, threads);
  if (!plan.error.empty()) throw std::invalid_argument(plan.error);

  nb::dict config;
  config["isa"] = IsaName(plan.isa);
  config["block_rows"] = plan.config.block_rows;
  config["block_cols"] = plan.config.block_cols;
  if (plan.config.skinny_slots > 0) {
    config["block_kept"] = plan.config.skinny_slots;
  } else {
    config["block_kept"] = plan.config.block_windows * n;
    config["block_depth"] = plan.config.block_windows * m;
    config["tile_cols"] = plan.config.tile_cols;
  }
  config["tasks"] = plan.config.tasks;
  config["scratch_bytes"] = plan.config.scratch_bytes;
  nb::dict result;
  result["kernel"] = plan.kernel;
  result["config"] = config;
  result["why"] = plan.why;
  return result;
}

}  // namespace
}  // namespace jax_nm

NB_MODULE(_cpu, m) {
  using namespace nanobind::literals;
  namespace nb = nanobind;

  m.def("registrations", &jax_nm::Registrations,
        "XLA FFI handlers: target name -> capsule, for platform 'cpu'.");
  m.def(
      "isa", [] { return jax_nm::IsaName(jax_nm::BestIsa()); },
      "The instruction set that runs unless a kernel is forced.");
  m.def(
      "built_isas",
      [] {
        nb::list names;
        for (jax_nm::Isa isa : jax_nm::BuiltIsas()) names.append(jax_nm::IsaName(isa));
        return names;
      },
      "The instruction sets that this build has kernels for.");
  m.def("plan", &jax_nm::PlanFor, "op"_a, "dtype"_a, "result_dtype"_a, "batch"_a, "rows"_a,
        "depth"_a, "cols"_a, "n"_a, "m"_a, "vector_length"_a, "x_feature_major"_a,
        "y_feature_major"_a, "kernel"_a = 0,
        "The kernel that the handler runs for this problem: {'kernel', 'config', 'why'}.");
}
