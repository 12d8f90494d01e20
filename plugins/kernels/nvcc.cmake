# Each .cu by nvcc for every SM asked for, linked with the static CUDA runtime.
set(nvcc ${ERNIE_CUDA_ROOT}/bin/nvcc)
set(codes)
foreach(sm IN LISTS ERNIE_SM)
  list(APPEND codes -gencode=arch=compute_${sm},code=sm_${sm})
endforeach()
file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/*.h)
foreach(kernel IN LISTS kernels)
  get_filename_component(name ${kernel} NAME_WE)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${nvcc} -std=c++17 -O3 --compiler-options=-fPIC ${codes} -c ${CMAKE_CURRENT_SOURCE_DIR}/${kernel} -o
            ${object}
    DEPENDS ${kernel} ${headers}
    COMMENT "nvcc ${kernel}"
    VERBATIM)
  target_sources(ernie_kernels PRIVATE ${object})
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
endforeach()
target_link_libraries(ernie_kernels PRIVATE ${ERNIE_CUDA_ROOT}/lib/libcudart_static.a pthread dl rt)
