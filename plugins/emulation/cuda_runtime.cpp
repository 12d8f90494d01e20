// The functions of the CUDA runtime that the launch functions call.
#include <cuda_runtime_api.h>

extern "C" const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
