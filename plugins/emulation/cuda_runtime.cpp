// The functions of the CUDA runtime that the launch functions and their hosts call.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

extern "C" const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }

extern "C" cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                         size_t height, cudaMemcpyKind, cudaStream_t) {
    for (size_t row = 0; row < height; ++row)
        std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    return cudaSuccess;
}

extern "C" cudaError_t cudaHostAlloc(void** memory, size_t size, unsigned) {
    *memory = std::malloc(size);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

extern "C" cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
    *device = host;
    return cudaSuccess;
}

extern "C" cudaError_t cudaFreeHost(void* memory) {
    std::free(memory);
    return cudaSuccess;
}
