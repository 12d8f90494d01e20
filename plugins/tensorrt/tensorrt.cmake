# The plugins for TensorRT: the kernels again, in a library that exports two functions and needs none of TensorRT's.
add_library(
  ernie_plugins SHARED EXCLUDE_FROM_ALL
  tensorrt/attention.cpp tensorrt/attributes.cpp tensorrt/experts.cpp tensorrt/library.cpp tensorrt/linear.cpp
  tensorrt/plugin.cpp tensorrt/routing.cpp tensorrt/signature.cpp)
set(exports ${CMAKE_CURRENT_SOURCE_DIR}/tensorrt/exports.map)
target_link_options(
  ernie_plugins PRIVATE -Wl,--version-script=${exports} -Wl,--no-undefined $<$<NOT:$<BOOL:${ERNIE_EMULATION}>>:-s>)
set_target_properties(ernie_plugins PROPERTIES LINK_DEPENDS ${exports})

# A TensorRT of the tests' own, which drives a plugin as builder and runtime do.
add_executable(ernie_drive_plugins EXCLUDE_FROM_ALL ../tests/plugins/drive_plugins.cpp)
target_link_libraries(ernie_drive_plugins PRIVATE ${CMAKE_DL_LIBS})

foreach(target ernie_plugins ernie_drive_plugins)
  target_include_directories(${target} SYSTEM PRIVATE ${ERNIE_TENSORRT_INCLUDE} ${ERNIE_CUDA_ROOT}/include)
  target_compile_options(${target} PRIVATE -Wall -Wextra)
endforeach()
