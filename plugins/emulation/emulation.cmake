# The kernels as C++.  The scheduler is compiled without sanitizers, see scheduler.cpp.
set(flags -Wall -Wextra -Wno-unknown-pragmas -fno-strict-aliasing -fno-omit-frame-pointer -g1 -O2)
set(sanitizers)
set(definitions ERNIE_EMULATION)
if(ERNIE_SANITIZER STREQUAL "address")
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
  list(APPEND definitions ERNIE_ASAN)
elseif(ERNIE_SANITIZER STREQUAL "thread")
  set(sanitizers -fsanitize=thread -fno-builtin)
  list(APPEND definitions ERNIE_TSAN)
elseif(ERNIE_SANITIZER STREQUAL "coverage")  # no sanitizer, but built of the same kind: it counts lines
  set(sanitizers --coverage -O1)
elseif(NOT ERNIE_SANITIZER STREQUAL "")
  message(FATAL_ERROR "ERNIE_SANITIZER is ${ERNIE_SANITIZER}; it is address, thread, coverage or nothing")
endif()

add_library(ernie_scheduler OBJECT emulation/scheduler.cpp emulation/fibre.cpp emulation/memory.cpp
                                   emulation/warp.cpp emulation/cuda_runtime.cpp)
target_include_directories(ernie_scheduler SYSTEM PRIVATE ${ERNIE_CUDA_ROOT}/include)
target_compile_definitions(ernie_scheduler PRIVATE ${definitions})
target_compile_options(ernie_scheduler PRIVATE ${flags} -fno-tree-loop-distribute-patterns)

set(faults ${CMAKE_CURRENT_SOURCE_DIR}/../tests/plugins/faults.cu)
set_source_files_properties(${kernels} ${faults} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
target_sources(ernie_kernels PRIVATE ${kernels})
# Kernels with planted faults, with which the tests try the emulation itself.
add_library(ernie_faults SHARED ${faults})
target_include_directories(ernie_faults SYSTEM PRIVATE ${ERNIE_CUDA_ROOT}/include)

foreach(library ernie_kernels ernie_faults)
  target_sources(${library} PRIVATE emulation/copy.cpp $<TARGET_OBJECTS:ernie_scheduler>)
  target_compile_definitions(${library} PRIVATE ${definitions})
  target_compile_options(${library} PRIVATE ${flags} ${sanitizers})
  target_link_options(${library} PRIVATE ${sanitizers})
endforeach()
