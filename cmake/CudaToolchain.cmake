# Decides whether jax_nm._cuda is built, finds the compiler and the architectures, and enables the
# CUDA language. Sets JAX_NM_BUILD_CUDA.
#   JAX_NM_CUDA        ON, OFF, or AUTO: with an NVIDIA GPU and a CUDA compiler
#   JAX_NM_CUDA_ARCHS  e.g. "80;90a;100;120;90-virtual"; an entry without suffix is machine code
#                      only, "-virtual" is PTX
# Both are read from the environment too (pyproject.toml passes them on).
set(JAX_NM_CUDA AUTO CACHE STRING "Build the CUDA kernels: ON, OFF or AUTO")
set(JAX_NM_CUDA_ARCHS "" CACHE STRING "CUDA architectures; empty: this machine's GPU, or 80;90a")
set(JAX_NM_BUILD_CUDA OFF)
string(TOUPPER "${JAX_NM_CUDA}" cuda_mode)
if(cuda_mode MATCHES "^(1|TRUE|YES)$")
  set(cuda_mode ON)
elseif(cuda_mode MATCHES "^(0|FALSE|NO)$")
  set(cuda_mode OFF)
endif()
if(NOT cuda_mode MATCHES "^(ON|OFF|AUTO)$")
  message(FATAL_ERROR "jax_nm: JAX_NM_CUDA must be ON, OFF or AUTO, got '${JAX_NM_CUDA}'")
endif()
if(cuda_mode STREQUAL OFF)
  message(STATUS "jax_nm: CPU package, because JAX_NM_CUDA=OFF")
  return()
endif()

# The architectures of this machine's GPUs, as in "80;90"; empty if the driver cannot be asked. The
# kernels copy by cp.async, which begins with 80.
execute_process(
  COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
  OUTPUT_VARIABLE gpu_capabilities
  ERROR_QUIET
  RESULT_VARIABLE smi_status)
if(NOT smi_status EQUAL 0)
  set(gpu_capabilities "")
endif()
string(REGEX MATCHALL "[0-9]+\\.[0-9]" gpu_capabilities "${gpu_capabilities}")
list(REMOVE_DUPLICATES gpu_capabilities)
list(TRANSFORM gpu_capabilities REPLACE "\\." "" OUTPUT_VARIABLE gpu_archs)
list(FILTER gpu_archs EXCLUDE REGEX "^[1-7][0-9]$")

file(GLOB gpu_devices /dev/nvidia[0-9]* /proc/driver/nvidia/gpus/*)
set(obstacle "")
if(NOT gpu_capabilities AND NOT gpu_devices)
  set(obstacle "no NVIDIA GPU was found on this machine")
elseif(gpu_capabilities AND NOT gpu_archs)
  set(obstacle "the GPU has compute capability ${gpu_capabilities} and the kernels need 8.0")
endif()

find_package(PipCuda QUIET)
if(CMAKE_CUDA_COMPILER)
  set(cuda_compiler "${CMAKE_CUDA_COMPILER}")
elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
  set(cuda_compiler "$ENV{CUDACXX}")
else()
  find_program(
    cuda_compiler nvcc
    PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
    PATH_SUFFIXES bin)
  if(NOT cuda_compiler AND PipCuda_FOUND)
    set(cuda_compiler "${PipCuda_NVCC}")
    # nvcc.profile of the wheels names lib64; they ship lib.
    set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${PipCuda_ROOT}/lib")
  endif()
endif()
if(NOT cuda_compiler)
  set(obstacle "no CUDA compiler was found on this machine")
endif()

if(obstacle AND cuda_mode STREQUAL AUTO)
  message(STATUS "jax_nm: CPU package, because ${obstacle}; for the CUDA kernels: JAX_NM_CUDA=ON pip "
                 "install .")
  return()
elseif(NOT cuda_compiler)
  message(
    FATAL_ERROR
      "jax_nm: JAX_NM_CUDA=ON, but no CUDA compiler was found in CUDACXX, on PATH, in /usr/local/cuda \
or in the pip wheels beside ${Python_EXECUTABLE} (${PipCuda_REASON}). Set CUDACXX=/path/to/nvcc, or \
install the wheels: pip install ${PipCuda_REQUIREMENTS}")
endif()
set(CMAKE_CUDA_COMPILER "${cuda_compiler}" CACHE FILEPATH "CUDA compiler")

# 90a, not 90, for a GPU of this machine: wgmma is a feature of that architecture alone.
set(requested_archs "")
if(JAX_NM_CUDA_ARCHS)
  string(REGEX REPLACE "[, ]+" ";" requested_archs "${JAX_NM_CUDA_ARCHS}")
elseif(NOT CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
  list(TRANSFORM gpu_archs REPLACE "^90$" 90a OUTPUT_VARIABLE requested_archs)
  if(NOT requested_archs)
    set(requested_archs 80 90a)
  endif()
endif()
if(requested_archs)
  list(TRANSFORM requested_archs APPEND -real REGEX "^[0-9]+[a-z]?$")
  set(CMAKE_CUDA_ARCHITECTURES ${requested_archs})
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(JAX_NM_BUILD_CUDA ON)
list(JOIN CMAKE_CUDA_ARCHITECTURES " " arch_text)
message(STATUS "jax_nm: CPU and CUDA package, ${CMAKE_CUDA_COMPILER} "
               "${CMAKE_CUDA_COMPILER_VERSION}, architectures ${arch_text}")
