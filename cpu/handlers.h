// The FFI handlers of the CPU platform, by target.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace jax_nm {

XLA_FFI_DECLARE_HANDLER_SYMBOL(SpmmHandler);
XLA_FFI_DECLARE_HANDLER_SYMBOL(SpmmTHandler);
XLA_FFI_DECLARE_HANDLER_SYMBOL(SddmmHandler);

}  // namespace jax_nm
