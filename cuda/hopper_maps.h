// The tensor maps that the Hopper kernel receives by value.
#pragma once

#include <cuda.h>

namespace jax_nm {

struct HopperMaps {
  CUtensorMap values;
  CUtensorMap result;
  CUtensorMap sum;  // before the activation
};

}  // namespace jax_nm
