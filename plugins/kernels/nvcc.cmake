# Each .cu by nvcc for every SM asked for, linked with the static CUDA runtime.  SMs of one family have their PTX in
# common, which is half the work; 8.x differs from 9.0 in the arithmetic of bf16 that cuda_bf16.h chooses.
set(nvcc ${ERNIE_CUDA_ROOT}/bin/nvcc)
set(codes)
set(objects)
foreach(sm IN LISTS ERNIE_SM)
  foreach(first 80 90 100 120)
    if(sm GREATER_EQUAL first)
      set(family ${first})
    endif()
  endforeach()
  list(APPEND codes -gencode=arch=compute_${family},code=sm_${sm})
endforeach()
file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/*.h)
foreach(kernel IN LISTS kernels)
  get_filename_component(name ${kernel} NAME_WE)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${nvcc} -ccbin ${CMAKE_CXX_COMPILER} -std=c++17 -O3 --compiler-options=-fPIC ${codes} -c ${CMAKE_CURRENT_SOURCE_DIR}/${kernel} -o
            ${object}
    DEPENDS ${kernel} ${headers}
    COMMENT "nvcc ${kernel}"
    VERBATIM)
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  list(APPEND objects ${object})
endforeach()
foreach(host IN LISTS hosts)
  target_sources(${host} PRIVATE ${objects})
  target_link_libraries(${host} PRIVATE ${ERNIE_CUDART} pthread dl rt)
endforeach()
