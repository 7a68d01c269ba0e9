// jax_nm._tuning: the choice of CUDA kernels, on any machine.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "named_problem.h"
#include "skinny_config.h"
#include "tuning.h"
#include "tuning_cost.h"
#include "tuning_hopper.h"
#include "tuning_short.h"
#include "tuning_split.h"

namespace nb = nanobind;

namespace jax_nm {
namespace {

nb::dict ToDict(const Config& c) {
  constexpr const char* kStagings[] = {"window", "gather", "scatter"};
  nb::dict d;
  d["staging"] = kStagings[static_cast<int>(c.staging)];
  d["block_rows"] = c.block_rows;
  d["block_cols"] = c.block_cols;
  d["block_kept"] = c.block_kept;
  d["block_windows"] = c.block_windows;
  if (IsHopper(c.kernel) || IsSplit(c.kernel)) {
    d["raster_cols"] = c.raster_cols;
    d["blocks"] = c.blocks;
    d["shared_tiles"] = c.shared_tiles;
    d["cluster"] = c.cluster;
  } else if (IsShort(c.kernel)) {
    d["raster_cols"] = c.raster_cols;
    d["blocks"] = c.blocks;
  } else if (IsSkinny(c.kernel)) {
    d["kept_warps"] = c.kept_warps;
    if (IsSkinnyBulk(c.kernel)) d["x_warps"] = c.x_warps;
    d["cluster"] = c.cluster;
  } else {
    // Of a warp where it is the warp that has the tensor cores.
    d["thread_rows"] = c.thread_rows;
    d["thread_cols"] = c.thread_cols;
    d["thread_kept"] = c.thread_kept;
  }
  d["threads"] = c.threads;
  d["stages"] = c.stages;
  d["split"] = c.split;
  d["groups_in_tile"] = c.groups_in_tile;
  d["shared_group"] = c.shared_group;
  if (c.group_cols > 0) d["group_cols"] = c.group_cols;
  d["shared_bytes"] = c.shared_bytes;
  return d;
}

nb::dict ChooseDict(const Problem& p, bool wgmma, int32_t num_sms) {
  const int64_t workspace_bytes = WorkspaceBytes(p);
  const Choice choice = Choose(p, kDefaultArch, num_sms, wgmma, workspace_bytes);
  const std::string why = Reason(p, choice, choice.chosen);
  if (choice.chosen.verdict != Verdict::kChosen) throw std::invalid_argument(why);
  nb::list rejected;
  for (const Candidate& candidate : choice.rejected) {
    rejected.append(nb::make_tuple(candidate.kernel->name, Reason(p, choice, candidate)));
  }
  nb::dict d;
  d["kernel"] = choice.chosen.kernel->name;
  d["config"] = ToDict(choice.chosen.config);
  d["why"] = why;
  d["predicted_us"] = EstimateMicroseconds(p, choice);
  d["rejected"] = rejected;
  d["workspace_bytes"] = workspace_bytes;
  return d;
}

double DenseMicroseconds(const Problem& p) {
  const Device device = DeviceOf(p.arch != 0 ? p.arch : kDefaultArch, 0);
  return Microseconds(device, DenseCycles(p, device));
}

nb::dict KernelIds(const std::string& op) {
  nb::dict ids;
  for (const KernelInfo& kernel : Kernels()) {
    if (!op.empty() && kernel.op != NamedOp(op)) continue;
    ids[kernel.name] = static_cast<int32_t>(kernel.id);
  }
  return ids;
}

// Defines a function of a problem, which Python passes as names and numbers, and of `More`.
template <class... More, class Result, class... Arguments>
void Define(nb::module_& m, const char* name, Result (*function)(const Problem&, More...),
            const char* doc, const Arguments&... arguments) {
  m.def(
      name,
      [function](const std::string& op, const std::string& dtype, const std::string& result_dtype,
                 int64_t batch, int64_t rows, int64_t depth, int64_t cols, int32_t n, int32_t m,
                 int32_t vector_length, bool x_feature_major, bool y_feature_major, bool allow_tf32,
                 int32_t kernel, int32_t arch, const std::string& activation, bool has_bias,
                 bool padded_values, bool transposed_values, More... more) {
        return function(
            NamedProblem(op, dtype, result_dtype, batch, rows, depth, cols, n, m, vector_length,
                         x_feature_major, y_feature_major, allow_tf32, kernel, arch, activation,
                         has_bias, padded_values, transposed_values),
            more...);
      },
      nb::arg("op"), nb::arg("dtype"), nb::arg("result_dtype"), nb::arg("batch"), nb::arg("rows"),
      nb::arg("depth"), nb::arg("cols"), nb::arg("n"), nb::arg("m"), nb::arg("vector_length"),
      nb::arg("x_feature_major"), nb::arg("y_feature_major"), nb::arg("allow_tf32"),
      nb::arg("kernel"), nb::arg("arch"), nb::arg("activation") = "", nb::arg("has_bias") = false,
      nb::arg("padded_values") = false, nb::arg("transposed_values") = false, arguments..., doc);
}

NB_MODULE(_tuning, m) {
  m.doc() = "The choice of CUDA kernels as a pure function of the problem; needs no CUDA.";
  Define(m, "choose", &ChooseDict,
         "The kernel, configuration, reason and rejected candidates for a problem. `wgmma` says "
         "whether a device of compute capability 9.0 would find code for sm_90a in the build; "
         "`num_sms` = 0 stands for a typical card.",
         nb::arg("wgmma") = true, nb::arg("num_sms") = 0);
  Define(m, "workspace_bytes", &WorkspaceBytes,
         "Bytes of the workspace that a problem's FFI call should get.");
  Define(m, "few_rows_us", &FewRowsMicroseconds,
         "The estimated time of a product with few rows, with a transpose of x in front if x is "
         "feature-major; infinite if no kernel computes it.",
         nb::arg("wgmma") = true);
  Define(m, "dense_pays", &DensePays,
         "Whether a product is faster by way of a dense matrix than by the kernel chosen.",
         nb::arg("wgmma") = true);
  Define(m, "transposed_values_pay", &TransposedValuesPay,
         "Whether a product is faster with values that are transposed in front of it.",
         nb::arg("wgmma") = true);
  Define(m, "dense_us", &DenseMicroseconds,
         "The estimated time of a product by way of a dense matrix.");
  m.def("kernels", &KernelIds, nb::arg("op") = "",
        "Maps the name of each CUDA kernel, or of each one of an operation, to its id.");
}

}  // namespace
}  // namespace jax_nm
