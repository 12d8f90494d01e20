// A word that kernels set and the host reads without waiting for them: page-locked memory of the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <utility>

#include "../kernels/launch.h"

namespace ernie::plugin {

class FaultWord {
  public:
    FaultWord() = default;
    /// A copy has no word yet: each execution context has its own.
    FaultWord(const FaultWord&) {}
    FaultWord& operator=(const FaultWord&) = delete;
    ~FaultWord() {
        if (word_) cudaFreeHost(const_cast<std::uint32_t*>(word_));
    }

    Problem allocate() {
        void* word = nullptr;
        constexpr unsigned how = cudaHostAllocMapped | cudaHostAllocPortable;
        if (cudaError_t error = cudaHostAlloc(&word, sizeof(*word_), how)) return no_context(error);
        word_ = static_cast<volatile std::uint32_t*>(word);
        *word_ = 0;
        void* device = nullptr;
        if (cudaError_t error = cudaHostGetDevicePointer(&device, word, 0)) return no_context(error);
        device_ = static_cast<std::uint32_t*>(device);
        return {};
    }

    /// Null before allocate().
    std::uint32_t* on_device() const { return device_; }

    /// Whether it was set since it was last asked.
    bool taken() {
        if (!word_ || *word_ == 0) return false;
        *word_ = 0;
        return true;
    }

  private:
    static Problem no_context(cudaError_t error) {
        return problem("there is no context of execution: %s", cudaGetErrorString(error));
    }

    volatile std::uint32_t* word_ = nullptr;
    std::uint32_t* device_ = nullptr;
};

}  // namespace ernie::plugin
