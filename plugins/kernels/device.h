// The first header of every .cu file: CUDA, or, in the tests, its emulation on this machine's CPU.
//
// Two things are said through macros, since g++ cannot read them: a launch, and the one dynamic shared
// memory of a kernel, a struct.  (Static __shared__ variables are not used.)
#pragma once

#if defined(ERNIE_EMULATION)
#include "../emulation/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define ERNIE_SHARED(type, name)                           \
    extern __shared__ __align__(128) unsigned char ernie_shared[]; \
    type& name = *reinterpret_cast<type*>(ernie_shared)

#ifdef __CUDACC__  // what only includes this for its types is compiled by the host's compiler
namespace ernie {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                   Arguments... arguments) {
    if (shared > 48 * 1024) {
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(shared));
        if (error != cudaSuccess) return error;
    }
    kernel<<<grid, block, shared, stream>>>(arguments...);
    return cudaGetLastError();
}

}  // namespace ernie
#endif

#define ERNIE_LAUNCH(kernel, grid, block, shared, stream, ...) \
    ernie::launch(kernel, grid, block, shared, stream, __VA_ARGS__)
#endif

#include <cstdint>
