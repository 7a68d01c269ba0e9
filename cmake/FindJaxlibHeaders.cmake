# Finds the XLA FFI headers of the jaxlib that the building interpreter sees, without importing it.
# Provides the target JaxlibHeaders::JaxlibHeaders.
execute_process(
  COMMAND
    "${Python_EXECUTABLE}" -c
    "import importlib.util as u; print(u.find_spec('jaxlib').submodule_search_locations[0])"
  OUTPUT_VARIABLE jaxlib_dir
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET
  RESULT_VARIABLE jaxlib_status)
set(JaxlibHeaders_INCLUDE_DIR "${jaxlib_dir}/include")
set(ffi_header "${JaxlibHeaders_INCLUDE_DIR}/xla/ffi/api/c_api.h")

if(jaxlib_status EQUAL 0 AND EXISTS "${ffi_header}")
  file(STRINGS "${ffi_header}" version_lines REGEX "define XLA_FFI_API_(MAJOR|MINOR) [0-9]+")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*" "\\1.\\2" JaxlibHeaders_VERSION
                       "${version_lines}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  JaxlibHeaders
  REQUIRED_VARS ffi_header JaxlibHeaders_VERSION
  VERSION_VAR JaxlibHeaders_VERSION
  REASON_FAILURE_MESSAGE
    "${Python_EXECUTABLE} has no XLA FFI headers. Either pip install 'jaxlib==0.10.*' there, or build \
without --no-build-isolation")

# A runtime accepts handlers of its own FFI version or an older one; a newer handler keeps the
# whole JAX backend from starting. jaxlib 0.10 has version 0.3.
if(JaxlibHeaders_FOUND AND JaxlibHeaders_VERSION VERSION_GREATER 0.3)
  message(NOTICE "jax_nm: built against XLA FFI ${JaxlibHeaders_VERSION}, so the result needs the "
                 "jaxlib in ${jaxlib_dir} or a newer one")
endif()

if(JaxlibHeaders_FOUND AND NOT TARGET JaxlibHeaders::JaxlibHeaders)
  add_library(JaxlibHeaders::JaxlibHeaders INTERFACE IMPORTED)
  target_include_directories(JaxlibHeaders::JaxlibHeaders SYSTEM
                             INTERFACE "${JaxlibHeaders_INCLUDE_DIR}")
endif()
