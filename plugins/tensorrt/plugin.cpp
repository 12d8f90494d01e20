#include "plugin.h"

#include <exception>
#include <limits>
#include <memory>

#include "log.h"

namespace ernie::plugin {
namespace {

using namespace nvinfer1;

/// What TensorRT takes for failure.
constexpr std::int32_t failed = -1;
/// A size that every operator takes wherever it is not known yet.
constexpr std::int32_t suits_all = 128;

/// 0, or `failed` and the problem in the log.  Nothing that is thrown may reach TensorRT.
template <class F>
std::int32_t answered(const char* name, F&& f) noexcept {
    try {
        const Problem wrong = f();
        if (wrong.empty()) return 0;
        say_error(std::string(name) + ": " + wrong);
    } catch (const std::exception& thrown) {
        say_error(thrown.what());
    }
    return failed;
}

Given given(const PluginTensorDesc& tensor) { return {tensor.type, tensor.format, &tensor.dims}; }

std::vector<Given> all_given(const PluginTensorDesc* tensors, std::size_t count) {
    std::vector<Given> all;
    for (std::size_t i = 0; i < count; ++i) all.push_back(given(tensors[i]));
    return all;
}

bool is_empty(const PluginTensorDesc& tensor) {
    for (int i = 0; i < tensor.dims.nbDims; ++i)
        if (tensor.dims.d[i] == 0) return true;
    return false;
}

/// That what has elements has memory.
Problem check_memory(const std::vector<Tensor>& tensors, const PluginTensorDesc* given, const void* const* memory) {
    for (std::size_t i = 0; i < tensors.size(); ++i)
        if (!memory[i] && !is_empty(given[i])) return std::string(tensors[i].name) + " has no memory";
    return {};
}

bool same(const Axis& a, const Axis& b) { return a.letter == b.letter && a.times == b.times && a.over == b.over; }

/// The size of an output's axis: that of the input's axis that is the same, or what an attribute says.
const IDimensionExpr* expression(const Axis& axis, const Signature& signature, const Sizes& known,
                                 const DimsExprs* inputs, IExprBuilder& builder) {
    for (std::size_t i = 0; i < signature.inputs.size(); ++i)
        for (std::size_t j = 0; j < signature.inputs[i].shape.size(); ++j)
            if (same(axis, signature.inputs[i].shape[j])) return inputs[i].d[j];
    return builder.constant(known[axis.letter]);
}

}  // namespace

Plugin::Plugin(const Operator& of, Attributes attributes)
    : operator_(of), attributes_(std::move(attributes)), signature_(of.signature(attributes_)), text_(attributes_.text()) {}

Plugin* Plugin::create(const Operator& of, const PluginFieldCollection* fields) noexcept {
    Plugin* created = nullptr;
    answered(of.name, [&]() -> Problem {
        Attributes attributes(of.attributes);
        if (Problem wrong = attributes.read(fields); !wrong.empty()) return wrong;
        auto plugin = std::unique_ptr<Plugin>(new Plugin(of, std::move(attributes)));
        if (Problem wrong = plugin->check_attributes(); !wrong.empty()) return wrong;
        created = plugin.release();
        return {};
    });
    return created;
}

Plugin::~Plugin() noexcept { tell_fault(); }

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuildV2*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
    Plugin* copy = nullptr;
    answered(operator_.name, [&]() -> Problem {
        copy = new Plugin(*this);
        return {};
    });
    return copy;
}

const char* Plugin::getPluginName() const noexcept { return operator_.name; }
const char* Plugin::getPluginVersion() const noexcept { return version; }
const char* Plugin::getPluginNamespace() const noexcept { return domain; }

// ---- what the builder asks ----

std::int32_t Plugin::getNbOutputs() const noexcept { return static_cast<std::int32_t>(signature_.outputs.size()); }

std::int32_t Plugin::getOutputDataTypes(DataType* types, std::int32_t outputs, const DataType* input_types,
                                        std::int32_t inputs) const noexcept {
    return answered(operator_.name, [&]() -> Problem {
        if (Problem wrong = check_count(inputs, outputs); !wrong.empty()) return wrong;
        for (std::int32_t i = 0; i < inputs; ++i)
            if (Problem wrong = check_type(signature_.inputs[i], input_types[i], input_types[0]); !wrong.empty())
                return wrong;
        for (std::int32_t i = 0; i < outputs; ++i)
            types[i] = signature_.outputs[i].element == Element::int64 ? DataType::kINT64 : input_types[0];
        return {};
    });
}

std::int32_t Plugin::getOutputShapes(const DimsExprs* input_shapes, std::int32_t inputs, const DimsExprs*,
                                     std::int32_t shape_inputs, DimsExprs* shapes, std::int32_t outputs,
                                     IExprBuilder& builder) noexcept {
    return answered(operator_.name, [&]() -> Problem {
        if (Problem wrong = check_count(inputs, outputs); !wrong.empty()) return wrong;
        if (shape_inputs) return problem("it takes no shape inputs, and was given %d", shape_inputs);
        for (std::int32_t i = 0; i < inputs; ++i)
            if (static_cast<std::size_t>(input_shapes[i].nbDims) != signature_.inputs[i].shape.size())
                return problem("%s has %d dimensions; it must have %zu", signature_.inputs[i].name,
                               input_shapes[i].nbDims, signature_.inputs[i].shape.size());
        for (std::int32_t i = 0; i < outputs; ++i) {
            const std::vector<Axis>& shape = signature_.outputs[i].shape;
            shapes[i].nbDims = static_cast<std::int32_t>(shape.size());
            for (std::size_t j = 0; j < shape.size(); ++j)
                shapes[i].d[j] = expression(shape[j], signature_, known_sizes(), input_shapes, builder);
        }
        return {};
    });
}

/// The builder tries combinations and takes those that fit, so what does not is nothing to tell.
bool Plugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                       std::int32_t inputs, std::int32_t outputs) noexcept {
    if (static_cast<std::size_t>(inputs) != signature_.inputs.size() || outputs != getNbOutputs() || position < 0 ||
        position >= inputs + outputs)
        return false;
    const Tensor& tensor = position < inputs ? signature_.inputs[position] : signature_.outputs[position - inputs];
    const PluginTensorDesc& asked = tensors[position].desc;
    return asked.format == TensorFormat::kLINEAR && takes(tensor.element, asked.type, tensors[0].desc.type);
}

std::int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* in, std::int32_t inputs,
                                     const DynamicPluginTensorDesc*, std::int32_t outputs) noexcept {
    return answered(operator_.name, [&]() -> Problem {
        if (Problem wrong = check_count(inputs, outputs); !wrong.empty()) return wrong;
        Sizes smallest, largest;
        if (Problem wrong = check_profile(in, &DynamicPluginTensorDesc::min, smallest); !wrong.empty()) return wrong;
        return check_profile(in, &DynamicPluginTensorDesc::max, largest);
    });
}

/// For the profile's largest shapes: a launch function's workspace never falls with more tokens.
std::size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* in, std::int32_t inputs,
                                     const DynamicPluginTensorDesc*, std::int32_t outputs) const noexcept {
    std::size_t size = 0;
    answered(operator_.name, [&]() -> Problem {
        if (Problem wrong = check_count(inputs, outputs); !wrong.empty()) return wrong;
        Sizes sizes;
        if (Problem wrong = check_profile(in, &DynamicPluginTensorDesc::max, sizes); !wrong.empty()) return wrong;
        Invocation invocation = without_work(sizes);
        invocation.sizes = sizes;
        size = operator_.workspace(invocation);
        return {};
    });
    return size;
}

std::int32_t Plugin::getAliasedInput(std::int32_t output) noexcept {
    return output >= 0 && output < getNbOutputs() ? signature_.outputs[output].alias : -1;
}

const char* Plugin::getTimingCacheID() noexcept { return text_.c_str(); }
const char* Plugin::getMetadataString() noexcept { return text_.c_str(); }

// ---- what the runtime asks ----

std::int32_t Plugin::onShapeChange(const PluginTensorDesc* in, std::int32_t inputs, const PluginTensorDesc*,
                                   std::int32_t outputs) noexcept {
    tell_fault();
    return answered(operator_.name, [&]() -> Problem {
        if (Problem wrong = check_count(inputs, outputs); !wrong.empty()) return wrong;
        Sizes sizes;
        return check_inputs(all_given(in, signature_.inputs.size()), sizes);
    });
}

std::int32_t Plugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                             void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    tell_fault();
    return answered(operator_.name, [&] { return start(in, out, inputs, outputs, workspace, stream); });
}

IPluginV3* Plugin::attachToContext(IPluginResourceContext*) noexcept {
    std::unique_ptr<Plugin> attached(static_cast<Plugin*>(clone()));
    if (!attached) return nullptr;
    if (operator_.fault && answered(operator_.name, [&] { return attached->fault_.allocate(); })) return nullptr;
    return attached.release();
}

const PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
    const std::int32_t code = answered(operator_.name, [&]() -> Problem {
        fields_ = attributes_.fields();
        collection_ = {static_cast<std::int32_t>(fields_.size()), fields_.data()};
        return {};
    });
    return code ? nullptr : &collection_;
}

// ---- how they are answered ----

Sizes Plugin::known_sizes() const {
    Sizes sizes;
    for (const Attribute& attribute : attributes_.all())
        if (attribute.letter) sizes.set(attribute.letter, attribute.integer);
    return sizes;
}

Problem Plugin::check_count(std::int32_t inputs, std::int32_t outputs) const {
    if (static_cast<std::size_t>(inputs) == signature_.inputs.size() && outputs == getNbOutputs()) return {};
    return problem("it has %zu inputs and %d outputs, and was given %d and %d", signature_.inputs.size(),
                   getNbOutputs(), inputs, outputs);
}

/// A call that only checks its arguments: the launch functions do no work for a batch of none.
Invocation Plugin::without_work(const Sizes& sizes) const {
    static const void* const no_inputs[16] = {};
    static void* const no_outputs[16] = {};
    Invocation invocation{attributes_, sizes, Type::fp16, no_inputs, no_outputs, nullptr,
                          std::numeric_limits<std::uint64_t>::max(), nullptr};
    invocation.sizes.set('B', 0);
    return invocation;
}

Problem Plugin::check_attributes() const {
    for (const Attribute& each : attributes_.all())
        if (each.type == PluginFieldType::kINT32 && each.integer <= 0)
            return problem("the attribute %s is %d; it must be positive", each.name, each.integer);
    Sizes sizes = known_sizes();
    sizes.set('S', 0);
    for (const Tensor& tensor : signature_.inputs)
        for (const Axis& axis : tensor.shape)
            if (!sizes.known(axis.letter)) sizes.set(axis.letter, suits_all);
    return operator_.launch(without_work(sizes), nullptr);
}

Problem Plugin::check_inputs(const std::vector<Given>& given, Sizes& sizes) const {
    sizes = known_sizes();
    for (std::size_t i = 0; i < given.size(); ++i)
        if (Problem wrong = check(signature_.inputs[i], given[i], given[0].type, sizes); !wrong.empty()) return wrong;
    if (std::int64_t{sizes['B']} * sizes['S'] > std::numeric_limits<std::int32_t>::max())
        return problem("%d rows of %d tokens are too many", sizes['B'], sizes['S']);
    return operator_.launch(without_work(sizes), nullptr);
}

Problem Plugin::check_profile(const DynamicPluginTensorDesc* in, Dims DynamicPluginTensorDesc::*dims,
                              Sizes& sizes) const {
    std::vector<Given> all;
    for (std::size_t i = 0; i < signature_.inputs.size(); ++i)
        all.push_back({in[i].desc.type, in[i].desc.format, &(in[i].*dims)});
    return check_inputs(all, sizes);
}

Problem Plugin::start(const PluginTensorDesc* in, const PluginTensorDesc* out, const void* const* inputs,
                      void* const* outputs, void* workspace, cudaStream_t stream) {
    Sizes sizes;
    if (Problem wrong = check_inputs(all_given(in, signature_.inputs.size()), sizes); !wrong.empty()) return wrong;
    for (std::size_t i = 0; i < signature_.outputs.size(); ++i)
        if (Problem wrong = check(signature_.outputs[i], given(out[i]), in[0].type, sizes); !wrong.empty())
            return wrong;
    if (Problem wrong = check_memory(signature_.inputs, in, inputs); !wrong.empty()) return wrong;
    if (Problem wrong = check_memory(signature_.outputs, out, outputs); !wrong.empty()) return wrong;
    Invocation invocation{attributes_, sizes, in[0].type == DataType::kBF16 ? Type::bf16 : Type::fp16, inputs, outputs,
                          workspace, 0, fault_.on_device()};
    // TensorRT does not say how much it gave: what getWorkspaceSize asked for at the largest shapes, which is enough.
    invocation.workspace_bytes = workspace ? operator_.workspace(invocation) : 0;
    return operator_.launch(invocation, stream);
}

void Plugin::tell_fault() noexcept {
    if (!fault_.taken()) return;
    answered(operator_.name, [&]() -> Problem { return std::string("in an earlier call ") + operator_.fault; });
}

}  // namespace ernie::plugin
