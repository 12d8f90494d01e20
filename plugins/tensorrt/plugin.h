// An operator as TensorRT's builder and runtime know it.
#pragma once

#include "fault_word.h"
#include "operator.h"

namespace ernie::plugin {

/// As the operators are called in ONNX: their domain, and its version.
constexpr const char* domain = "ernie";
constexpr const char* version = "1";

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    /// Null, and a line in the log, where the attributes are wrong.
    static Plugin* create(const Operator& of, const nvinfer1::PluginFieldCollection* fields) noexcept;
    Plugin(const Plugin&) = default;
    ~Plugin() noexcept override;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

    std::int32_t getNbOutputs() const noexcept override;
    std::int32_t getOutputDataTypes(nvinfer1::DataType* types, std::int32_t outputs,
                                    const nvinfer1::DataType* input_types, std::int32_t inputs) const noexcept override;
    std::int32_t getOutputShapes(const nvinfer1::DimsExprs* input_shapes, std::int32_t inputs,
                                 const nvinfer1::DimsExprs* values, std::int32_t shape_inputs,
                                 nvinfer1::DimsExprs* shapes, std::int32_t outputs,
                                 nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                   std::int32_t inputs, std::int32_t outputs) noexcept override;
    std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t inputs,
                                 const nvinfer1::DynamicPluginTensorDesc* out, std::int32_t outputs) noexcept override;
    std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, std::int32_t inputs,
                                 const nvinfer1::DynamicPluginTensorDesc* out,
                                 std::int32_t outputs) const noexcept override;
    std::int32_t getAliasedInput(std::int32_t output) noexcept override;
    const char* getTimingCacheID() noexcept override;
    const char* getMetadataString() noexcept override;

    std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, std::int32_t inputs,
                               const nvinfer1::PluginTensorDesc* out, std::int32_t outputs) noexcept override;
    std::int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                         const void* const* inputs, void* const* outputs, void* workspace,
                         cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

  private:
    Plugin(const Operator& of, Attributes attributes);
    Sizes known_sizes() const;
    Problem check_count(std::int32_t inputs, std::int32_t outputs) const;
    Problem check_attributes() const;
    Problem check_inputs(const std::vector<Given>& given, Sizes& sizes) const;
    Problem check_profile(const nvinfer1::DynamicPluginTensorDesc* in,
                          nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::*dims, Sizes& sizes) const;
    Problem start(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream);
    Invocation without_work(const Sizes& sizes) const;
    void tell_fault() noexcept;

    const Operator& operator_;
    Attributes attributes_;
    Signature signature_;
    std::string text_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
    FaultWord fault_;
};

}  // namespace ernie::plugin
