# jax_nm._cuda. The kernels are their own library, so that nvcc sees neither XLA's headers nor
# nanobind's.
file(GLOB kernel_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cuda/*.cu")
add_library(jax_nm_cuda_kernels STATIC ${kernel_sources} ${tuning_sources})
target_include_directories(jax_nm_cuda_kernels PUBLIC cuda)
target_link_libraries(jax_nm_cuda_kernels PRIVATE jax_nm_common)
target_compile_options(
  jax_nm_cuda_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
                              $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)

file(GLOB host_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cuda/*.cc")
list(FILTER host_sources EXCLUDE REGEX "/tuning[^/]*$")
jax_nm_add_module(_cuda ${host_sources})
target_include_directories(_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(_cuda PRIVATE jax_nm_cuda_kernels JaxlibHeaders::JaxlibHeaders)
