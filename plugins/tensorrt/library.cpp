// What TensorRT's registry looks for in a library of plugins, which is linked to none of TensorRT's own.
#include <NvInferRuntime.h>

#include <array>
#include <atomic>
#include <cstdio>

#include "log.h"
#include "plugin.h"

namespace ernie::plugin {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

class Creator final : public nvinfer1::IPluginCreatorV3One {
  public:
    explicit Creator(Operator of) : operator_(std::move(of)) {
        for (const Attribute& each : operator_.attributes) fields_.emplace_back(each.name, nullptr, each.type, 1);
        collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
    }

    /// For the builder and for the runtime alike: the attributes are all there is to a plugin.
    nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return Plugin::create(operator_, fields);
    }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return operator_.name; }
    const char* getPluginVersion() const noexcept override { return version; }
    const char* getPluginNamespace() const noexcept override { return domain; }

  private:
    const Operator operator_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace

void say_error(const std::string& message) noexcept {
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
    if (logger)
        logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    else
        std::fprintf(stderr, "%s\n", message.c_str());
}

}  // namespace ernie::plugin

#define ERNIE_PLUGIN_EXPORT extern "C" __attribute__((visibility("default")))

ERNIE_PLUGIN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    ernie::plugin::logger_finder.store(finder);
}

ERNIE_PLUGIN_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    using namespace ernie::plugin;
    static Creator routing(moe_routing()), experts(moe_experts()), linear(quantized_linear()),
        attention(cached_attention());
    static const std::array<nvinfer1::IPluginCreatorInterface*, 4> all{&routing, &experts, &linear, &attention};
    count = static_cast<std::int32_t>(all.size());
    return all.data();
}
