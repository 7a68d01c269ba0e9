// jax_nm._cuda: the handlers as capsules, to be registered by Python.
#include <nanobind/nanobind.h>

#include "dispatch.h"
#include "handlers.h"

namespace nb = nanobind;

namespace jax_nm {
namespace {

nb::dict Registrations() {
  nb::dict targets;
  for (const Handler& handler : kHandlers) {
    nb::dict stages;
    stages["initialize"] = nb::capsule(reinterpret_cast<void*>(handler.initialize));
    stages["execute"] = nb::capsule(reinterpret_cast<void*>(handler.execute));
    targets[handler.target] = stages;
  }
  return targets;
}

nb::list Archs() {
  nb::list archs;
  for (int arch : BuiltArchs()) archs.append(arch);
  return archs;
}

NB_MODULE(_cuda, m) {
  m.doc() = "FFI handlers of the products for NVIDIA GPUs.";
  m.def("registrations", &Registrations,
        "Maps each target name to its stages' handlers, as capsules.");
  m.def("built_archs", &Archs,
        "Compute capabilities (as 90 for 9.0) that this module holds machine code for.");
  m.def("has_wgmma", &HasHopperKernels,
        "Whether this module holds machine code for sm_90a, which the wgmma kernels need.");
}

}  // namespace
}  // namespace jax_nm
