# jax_nm._cuda. The kernels are their own library, so that nvcc sees neither XLA's headers nor
# nanobind's.
file(GLOB kernel_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cuda/*.cu")
set(hopper_sources ${kernel_sources})
list(FILTER hopper_sources INCLUDE REGEX "/kernels_hopper_[^/]*$")
list(REMOVE_ITEM kernel_sources ${hopper_sources})
set(kernel_options $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
                   $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)

add_library(jax_nm_cuda_kernels STATIC ${kernel_sources} ${tuning_sources})
target_include_directories(jax_nm_cuda_kernels PUBLIC cuda)
target_link_libraries(jax_nm_cuda_kernels PRIVATE jax_nm_common)
target_compile_options(jax_nm_cuda_kernels PRIVATE ${kernel_options})

# wgmma exists in sm_90a alone, so these kernels are compiled for it alone. A build without it has
# none of them, and the tuning function does not choose them there.
set(hopper_archs ${CMAKE_CUDA_ARCHITECTURES})
list(FILTER hopper_archs INCLUDE REGEX "^90a(-|$)")
if(hopper_archs)
  add_library(jax_nm_cuda_hopper OBJECT ${hopper_sources})
  set_target_properties(jax_nm_cuda_hopper PROPERTIES CUDA_ARCHITECTURES "${hopper_archs}")
  target_include_directories(jax_nm_cuda_hopper PRIVATE cuda)
  target_link_libraries(jax_nm_cuda_hopper PRIVATE jax_nm_common)
  target_compile_options(jax_nm_cuda_hopper PRIVATE ${kernel_options})
  target_sources(jax_nm_cuda_kernels PRIVATE $<TARGET_OBJECTS:jax_nm_cuda_hopper>)
  target_compile_definitions(jax_nm_cuda_kernels PRIVATE JAX_NM_HAVE_SM90A)
endif()

file(GLOB host_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cuda/*.cc")
list(FILTER host_sources EXCLUDE REGEX "/tuning[^/]*$")
jax_nm_add_module(_cuda ${host_sources})
target_include_directories(_cuda SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(_cuda PRIVATE jax_nm_cuda_kernels JaxlibHeaders::JaxlibHeaders)
