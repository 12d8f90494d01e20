// Libraries of plugins, and TensorRT's own registry of them.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

using namespace nvinfer1;

/// IPluginRegistry of TensorRT 11, in which the methods that 10 deprecated are gone; the headers here are 10.14's.
/// In no anonymous namespace, where a compiler knows that nothing implements it.
struct RegistryOf11 {
    virtual ~RegistryOf11() = default;
    virtual void setErrorRecorder(IErrorRecorder*) noexcept = 0;
    virtual IErrorRecorder* getErrorRecorder() const noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool) = 0;
    virtual void* loadLibrary(const char*) noexcept = 0;
    virtual void deregisterLibrary(void*) noexcept = 0;
    virtual bool registerCreator(IPluginCreatorInterface&, const char*) noexcept = 0;
    virtual IPluginCreatorInterface* const* getAllCreators(std::int32_t*) const noexcept = 0;
    virtual IPluginCreatorInterface* getCreator(const char*, const char*, const char*) noexcept = 0;
};

namespace {

[[noreturn]] void end(const std::string& why) {
    std::cout << "script " << why << std::endl;
    std::exit(3);
}

using Creators = std::vector<IPluginCreatorV3One*>;

Creators of_third_generation(IPluginCreatorInterface* const* all, std::int32_t count) {
    Creators creators;
    for (std::int32_t i = 0; i < count; ++i)
        if (std::string(all[i]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE")
            creators.push_back(static_cast<IPluginCreatorV3One*>(all[i]));
    return creators;
}

template <class Registry>
Creators registered(Registry& registry, const char* path) {
    std::int32_t before = 0, count = 0;
    registry.getAllCreators(&before);
    if (!registry.loadLibrary(path)) end("the registry refuses the library");
    IPluginCreatorInterface* const* all = registry.getAllCreators(&count);
    Creators creators;
    for (IPluginCreatorV3One* each : of_third_generation(all, count)) {
        const char* space = each->getPluginNamespace();
        if (*space == 0) continue;  // TensorRT's own
        if (registry.getCreator(each->getPluginName(), each->getPluginVersion(), space) != each)
            end("the registry finds another creator");
        creators.push_back(each);
    }
    if (count - before != static_cast<int>(creators.size())) end("the registry has others too");
    return creators;
}

void* opened(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) end(dlerror());
    return library;
}

template <class Function>
Function* found(void* library, const char* name) {
    void* symbol = dlsym(library, name);
    if (!symbol) end(std::string("found no ") + name);
    return reinterpret_cast<Function*>(symbol);
}

Creators registered_by_tensorrt(const char* path, const char* tensorrt) {
    void* library = opened(tensorrt);
    void* registry = found<void*()>(library, "getPluginRegistry")();
    const std::int32_t version = found<std::int32_t()>(library, "getInferLibVersion")();
    std::cout << "tensorrt " << version << std::endl;
    if (version >= 110000) return registered(*static_cast<RegistryOf11*>(registry), path);
    return registered(*static_cast<IPluginRegistry*>(registry), path);
}

}  // namespace
