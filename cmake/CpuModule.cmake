# jax_nm._cpu. Kernels for one instruction set are compiled with its flags, each in its own file,
# and cpu/dispatch.cc chooses among them at run time: one binary serves every machine.
file(GLOB cpu_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cpu/*.cc")
set(avx2_flags -mavx2 -mfma -mf16c)
set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
set(neon_flags "") # part of the base instruction set

set(machine_isas "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(machine_isas avx2 avx512)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(machine_isas neon)
endif()

set(cpu_definitions "")
foreach(isa IN ITEMS avx2 avx512 neon)
  set(isa_sources ${cpu_sources})
  list(FILTER isa_sources INCLUDE REGEX "_${isa}\\.cc$")
  if(isa IN_LIST machine_isas AND isa_sources)
    set_source_files_properties(${isa_sources} PROPERTIES COMPILE_OPTIONS "${${isa}_flags}")
    string(TOUPPER "JAX_NM_HAVE_${isa}" definition)
    list(APPEND cpu_definitions ${definition})
  elseif(isa_sources)
    list(REMOVE_ITEM cpu_sources ${isa_sources})
  endif()
endforeach()

jax_nm_add_module(_cpu ${cpu_sources})
target_include_directories(_cpu PRIVATE cpu)
target_link_libraries(_cpu PRIVATE JaxlibHeaders::JaxlibHeaders)
target_compile_definitions(_cpu PRIVATE ${cpu_definitions})
