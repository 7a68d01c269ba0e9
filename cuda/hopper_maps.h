// The tensor maps that the Hopper kernel receives by value.
#pragma once

#include <cuda.h>

namespace jax_nm {

struct HopperMaps {
  CUtensorMap first;   // dy of spmm_t; x is gathered
  CUtensorMap second;  // the values of spmm and spmm_t, dy of sddmm
  CUtensorMap result;
  CUtensorMap sum;  // before the activation
};

}  // namespace jax_nm
