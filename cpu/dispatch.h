// Which kernels run and how the work is cut: pure functions of the problem and of the instruction
// sets at hand.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernel_table.h"

namespace jax_nm {

// The values of the `kernel` attribute on this platform.
enum class Isa : int32_t { kAuto = 0, kPortable = 1, kAvx2 = 2, kAvx512 = 3, kNeon = 4 };

const char* IsaName(Isa isa);

// Compiled into this module, from the base instruction set upwards.
std::vector<Isa> BuiltIsas();

// The widest one of those that this CPU runs.
Isa BestIsa();

struct Plan {
  std::string error;  // why there is no plan; empty if there is one
  Isa isa;
  std::string kernel;
  Config config;
  TaskFunction function;  // runs tasks 0 to config.tasks - 1
  std::string why;
};

// `problem.kernel` forces an instruction set unless it is 0. `threads` sets the number of tasks
// only; the order of every sum, and so every bit of the result, comes from the problem alone.
Plan MakePlan(const Problem& problem, int64_t threads);

}  // namespace jax_nm
