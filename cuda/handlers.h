// The FFI handlers, one pair of stages per target.
#pragma once

#include "xla/ffi/api/c_api.h"

namespace jax_nm {

struct Handler {
  const char* target;
  XLA_FFI_Handler* initialize;
  XLA_FFI_Handler* execute;
};

inline constexpr int kHandlerCount = 5;
extern const Handler kHandlers[kHandlerCount];

}  // namespace jax_nm
