# Finds the CUDA compiler that NVIDIA's pip wheels of version 13 install in
# site-packages/nvidia/cu13. (The wheels of version 12 hold no nvcc.)
# Sets PipCuda_FOUND, PipCuda_ROOT, PipCuda_NVCC, PipCuda_REQUIREMENTS, and PipCuda_REASON if not
# found.
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/build_backend.py"
  OUTPUT_VARIABLE PipCuda_REQUIREMENTS
  OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(
  COMMAND
    "${Python_EXECUTABLE}" -c
    "import importlib.util as u; s = u.find_spec('nvidia'); \
print(';'.join(p + '/cu13' for p in s.submodule_search_locations) if s else '')"
  OUTPUT_VARIABLE pip_cuda_roots
  OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)

# One file of each wheel that a compilation needs: packages like torch bring only some of them.
set(pip_cuda_files
    bin/nvcc
    bin/crt/link.stub
    include/crt/host_config.h
    include/cuda_runtime.h
    lib/libcudart_static.a
    include/cccl/nv/target
    nvvm/bin/cicc)
set(PipCuda_FOUND FALSE)
set(PipCuda_REASON "none of them is installed")
foreach(root IN LISTS pip_cuda_roots)
  set(missing ${pip_cuda_files})
  foreach(file IN LISTS pip_cuda_files)
    if(EXISTS "${root}/${file}")
      list(REMOVE_ITEM missing ${file})
    endif()
  endforeach()
  if(NOT missing)
    set(PipCuda_FOUND TRUE)
    set(PipCuda_ROOT "${root}")
    set(PipCuda_NVCC "${root}/bin/nvcc")
    break()
  elseif(EXISTS "${root}")
    list(JOIN missing ", " PipCuda_REASON)
    set(PipCuda_REASON "${root} lacks ${PipCuda_REASON}")
  endif()
endforeach()
