// A TensorRT of the tests' own: loads a library of plugins as TensorRT's registry does, and calls every method that
// builder and runtime call.  `ernie_drive_plugins LIBRARY` reads commands, a line each, and tells what came of them.  With
// `ernie_drive_plugins LIBRARY LIBNVINFER` the registry is TensorRT's own (and the logger too: none without a GPU).
//
//   attribute NAME i32|i64|f32|none VALUE   a field for `create`
//   input TYPE SHAPE LARGEST FILE           SHAPE like 2,3,64 (`-`: a scalar); LARGEST: of the profile; FILE `-`: no memory
//   share OUTPUT INPUT                      the output lies in the input's memory
//   create NAME                             for the builder
//   build [without workspace]               what a builder asks, in its order
//   reload                                  serialise, and create anew for the runtime; before, every cut-short one
//   attach, detach                          a context of execution
//   run PREFIX                              onShapeChange and enqueue; the outputs go to PREFIX0, PREFIX1, …
//
// Every tensor lies in memory of exactly its size.  A step that fails is told, and the next one is called all the same.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tensorrt_registry.h"

using namespace nvinfer1;

namespace {

const std::map<std::string, std::pair<DataType, int>> types{
    {"fp32", {DataType::kFLOAT, 4}}, {"fp16", {DataType::kHALF, 2}},   {"int8", {DataType::kINT8, 1}},
    {"bf16", {DataType::kBF16, 2}},  {"int32", {DataType::kINT32, 4}}, {"int64", {DataType::kINT64, 8}},
    {"bool", {DataType::kBOOL, 1}},  {"uint8", {DataType::kUINT8, 1}}, {"fp8", {DataType::kFP8, 1}}};

const std::pair<const std::string, std::pair<DataType, int>>& named(DataType type) {
    for (const auto& each : types)
        if (each.second.first == type) return each;
    end("met a dtype without a name");
}

Dims dims_of(const std::string& text) {
    Dims dims{};
    std::stringstream numbers(text == "-" ? "" : text);
    for (std::string number; std::getline(numbers, number, ',');) dims.d[dims.nbDims++] = std::stoll(number);
    return dims;
}

std::string text_of(const Dims& dims) {
    std::string text;
    for (int i = 0; i < dims.nbDims; ++i) text += (i ? "," : "") + std::to_string(dims.d[i]);
    return text.empty() ? "-" : text;
}

std::size_t bytes_of(const PluginTensorDesc& tensor) {
    std::size_t bytes = named(tensor.type).second.second;
    for (int i = 0; i < tensor.dims.nbDims; ++i) bytes *= tensor.dims.d[i];
    return bytes;
}

struct Logger : ILogger {
    bool quiet = false;
    std::size_t told = 0;
    void log(Severity severity, const char* message) noexcept override {
        ++told;
        if (quiet) return;
        std::cout << (severity == Severity::kERROR ? "error " : "other ") << message << std::endl;
    }
};

struct Finder : ILoggerFinder {
    Logger logger;
    ILogger* findLogger() override { return &logger; }
};

class Constant : public IDimensionExpr {
  public:
    explicit Constant(std::int64_t value) : value_(value) { mImpl = &value_; }

  private:
    struct Value : apiv::VDimensionExpr {
        explicit Value(std::int64_t of) : value(of) {}
        bool isConstant() const override { return true; }
        std::int64_t getConstantValue() const override { return value; }
        bool isSizeTensor() const override { return false; }
        std::int64_t value;
    } value_;
};

class Expressions : public IExprBuilder {
  public:
    Expressions() { mImpl = &maker_; }
    const IDimensionExpr* of(std::int64_t value) { return maker_.constant(value); }

  private:
    struct Maker : apiv::VExprBuilder {
        const IDimensionExpr* constant(std::int64_t value) override { return &made.emplace_back(value); }
        const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) override {
            end("asked for an operation on expressions");
        }
        const IDimensionExpr* declareSizeTensor(std::int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
            end("asked for a size tensor");
        }
        std::list<Constant> made;
    } maker_;
};

/// A step and what it answered, behind what it logged.
void tell(const char* step, std::int64_t answer) { std::cout << step << " " << answer << std::endl; }

struct Field {
    std::string name;
    PluginFieldType type;
    std::vector<char> data;
    std::int32_t length;
};

/// The fields as TensorRT passes them; they live as long as `fields`.
std::vector<PluginField> passed(const std::vector<Field>& fields) {
    std::vector<PluginField> all;
    for (const Field& each : fields)
        all.emplace_back(each.name.c_str(), each.data.empty() ? nullptr : each.data.data(), each.type, each.length);
    return all;
}

void put(std::vector<char>& bytes, const void* data, std::size_t size) {
    const char* first = static_cast<const char*>(data);
    bytes.insert(bytes.end(), first, first + size);
}

std::vector<char> serialised(const PluginFieldCollection& fields) {
    std::vector<char> bytes;
    for (int i = 0; i < fields.nbFields; ++i) {
        const PluginField& field = fields.fields[i];
        if (field.type != PluginFieldType::kINT32 && field.type != PluginFieldType::kFLOAT32) end("met a field's type");
        put(bytes, field.name, std::strlen(field.name) + 1);
        put(bytes, &field.type, sizeof(field.type));
        put(bytes, &field.length, sizeof(field.length));
        put(bytes, field.data, 4 * field.length);
    }
    return bytes;
}

/// The fields in the first `size` bytes: the one that is cut has no values left, or is gone with its name.
std::vector<Field> parsed(const std::vector<char>& bytes, std::size_t size) {
    std::vector<Field> fields;
    for (std::size_t at = 0; at < size;) {
        const std::size_t name = strnlen(&bytes[at], size - at);
        Field field{std::string(&bytes[at], name), PluginFieldType::kUNKNOWN, {}, 0};
        at += name + 1;
        if (at + 8 > size) break;
        std::memcpy(&field.type, &bytes[at], 4);
        std::memcpy(&field.length, &bytes[at + 4], 4);
        at += 8;
        if (at + 4 * field.length > size) field.length = 0;
        field.data.assign(bytes.begin() + at, bytes.begin() + std::min(at + 4, size));
        at += 4;
        fields.push_back(std::move(field));
    }
    return fields;
}

using Memory = std::unique_ptr<char, decltype(&std::free)>;

Memory memory_of(std::size_t size) {
    Memory memory(static_cast<char*>(std::malloc(size)), std::free);
    std::memset(memory.get(), 0xff, size);
    return memory;
}

struct Input {
    DynamicPluginTensorDesc tensor;
    Memory memory;
};

template <class Capability>
Capability* capability(IPluginV3& plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

class Driver {
  public:
    Driver(const char* path, const char* tensorrt);
    void obey(const std::string& command, std::istream& arguments);

  private:
    Creators registered_here(const char* path);
    void attribute(std::istream& arguments);
    void input(std::istream& arguments);
    void create(std::istream& arguments);
    void build();
    void ask_formats(IPluginV3OneBuildV2& build);
    void reload();
    void attach();
    void run(std::istream& arguments);

    Finder finder_;
    std::map<std::string, IPluginCreatorV3One*> creators_;
    IPluginCreatorV3One* creator_ = nullptr;
    std::vector<Field> fields_;
    std::vector<Input> inputs_;
    std::map<int, int> shared_;
    std::unique_ptr<IPluginV3> plugin_, attached_;
    std::vector<DynamicPluginTensorDesc> outputs_;
    std::size_t workspace_ = 0;
};

Driver::Driver(const char* path, const char* tensorrt) {
    for (IPluginCreatorV3One* each : tensorrt ? registered_by_tensorrt(path, tensorrt) : registered_here(path)) {
        creators_[each->getPluginName()] = each;
        std::cout << "creator " << each->getPluginNamespace() << "::" << each->getPluginName() << " "
                  << each->getPluginVersion();
        const PluginFieldCollection& fields = *each->getFieldNames();
        for (int i = 0; i < fields.nbFields; ++i)
            std::cout << " " << fields.fields[i].name << ":" << static_cast<int>(fields.fields[i].type);
        std::cout << std::endl;
    }
}

/// As the registry does it, with a logger of our own.
Creators Driver::registered_here(const char* path) {
    void* library = opened(path);
    found<void(ILoggerFinder*)>(library, "setLoggerFinder")(&finder_);
    std::int32_t count = 0;
    IPluginCreatorInterface* const* all =
        found<IPluginCreatorInterface* const*(std::int32_t&)>(library, "getCreators")(count);
    Creators creators = of_third_generation(all, count);
    if (creators.size() != static_cast<std::size_t>(count)) end("found creators of another generation");
    return creators;
}

void Driver::obey(const std::string& command, std::istream& arguments) {
    if (command == "attribute") return attribute(arguments);
    if (command == "input") return input(arguments);
    if (command == "create") return create(arguments);
    if (command == "attach") return attach();
    if (command == "detach") return attached_.reset();
    if (command == "run") return run(arguments);
    int output, input;
    if (command == "share" && arguments >> output >> input) {
        shared_[output] = input;
    } else if (!plugin_) {
        std::cout << command << " without a plugin" << std::endl;
    } else if (command == "build") {
        std::string without;
        build();
        if (arguments >> without) workspace_ = 0;
    } else if (command == "reload") {
        reload();
    } else {
        end("has a command " + command);
    }
}

void Driver::attribute(std::istream& arguments) {
    std::string name, type, value;
    arguments >> name >> type >> value;
    Field field{name, PluginFieldType::kUNKNOWN, {}, 1};
    if (type == "i32") {
        field.type = PluginFieldType::kINT32;
        const auto number = static_cast<std::int32_t>(std::stoll(value));
        put(field.data, &number, sizeof(number));
    } else if (type == "i64") {
        field.type = PluginFieldType::kINT64;
        const std::int64_t number = std::stoll(value);
        put(field.data, &number, sizeof(number));
    } else if (type == "f32") {
        field.type = PluginFieldType::kFLOAT32;
        const float number = std::stof(value);
        put(field.data, &number, sizeof(number));
    } else {
        field.length = 0;
    }
    fields_.push_back(std::move(field));
}

void Driver::input(std::istream& arguments) {
    std::string type, shape, largest, file;
    arguments >> type >> shape >> largest >> file;
    Input input{{}, Memory(nullptr, std::free)};
    DynamicPluginTensorDesc& tensor = input.tensor;
    tensor.desc = {dims_of(shape), types.at(type).first, TensorFormat::kLINEAR, 1.0f};
    tensor.min = tensor.opt = tensor.desc.dims;
    tensor.max = dims_of(largest);
    if (file != "-") {
        std::ifstream stream(file, std::ios::binary);
        const std::vector<char> bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
        if (bytes.size() != bytes_of(tensor.desc)) end("names a file of another size, " + file);
        input.memory = memory_of(bytes.size());
        std::copy(bytes.begin(), bytes.end(), input.memory.get());
    }
    inputs_.push_back(std::move(input));
}

void Driver::create(std::istream& arguments) {
    std::string name;
    arguments >> name;
    creator_ = creators_.at(name);
    const std::vector<PluginField> fields = passed(fields_);
    const PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
    finder_.logger.quiet = true;
    if (creator_->createPlugin("none", nullptr, TensorRTPhase::kBUILD)) end("got a plugin without attributes");
    finder_.logger.quiet = false;
    plugin_.reset(creator_->createPlugin("layer", &collection, TensorRTPhase::kBUILD));
    std::cout << "created " << (plugin_ ? 1 : 0) << std::endl;
    if (!plugin_) return;
    auto* core = capability<IPluginV3OneCore>(*plugin_, PluginCapabilityType::kCORE);
    std::cout << "core " << core->getPluginNamespace() << "::" << core->getPluginName() << " "
              << core->getPluginVersion() << std::endl;
}

void Driver::build() {
    std::unique_ptr<IPluginV3> copy(plugin_->clone());
    auto& build = *capability<IPluginV3OneBuildV2>(*copy, PluginCapabilityType::kBUILD);
    const std::int32_t inputs = inputs_.size(), outputs = build.getNbOutputs();
    std::cout << "interface " << build.getInterfaceInfo().kind << " " << build.getInterfaceInfo().major << std::endl;
    std::cout << "metadata " << build.getMetadataString() << "\ntiming " << build.getTimingCacheID() << std::endl;

    std::vector<DataType> given, made(outputs);
    std::vector<DimsExprs> shapes(inputs), made_shapes(outputs);
    Expressions expressions;
    for (int i = 0; i < inputs; ++i) {
        const PluginTensorDesc& tensor = inputs_[i].tensor.desc;
        given.push_back(tensor.type);
        shapes[i].nbDims = tensor.dims.nbDims;
        for (int j = 0; j < tensor.dims.nbDims; ++j) shapes[i].d[j] = expressions.of(tensor.dims.d[j]);
    }
    tell("types", build.getOutputDataTypes(made.data(), outputs, given.data(), inputs));
    const int code =
        build.getOutputShapes(shapes.data(), inputs, nullptr, 0, made_shapes.data(), outputs, expressions);
    std::cout << "shapes " << code << std::endl;
    outputs_.assign(outputs, {});
    for (int i = 0; i < outputs; ++i) {
        PluginTensorDesc& tensor = outputs_[i].desc;
        tensor.type = made[i];
        tensor.format = TensorFormat::kLINEAR;
        if (code == 0) tensor.dims.nbDims = made_shapes[i].nbDims;
        for (int j = 0; j < tensor.dims.nbDims; ++j) tensor.dims.d[j] = made_shapes[i].d[j]->getConstantValue();
        std::cout << "output " << named(tensor.type).first << " " << text_of(tensor.dims) << " "
                  << build.getAliasedInput(i) << std::endl;
    }
    if (build.getAliasedInput(outputs) != -1 || build.getAliasedInput(-1) != -1) end("aliases an output that is none");
    ask_formats(build);

    std::vector<DynamicPluginTensorDesc> in;
    for (const Input& each : inputs_) in.push_back(each.tensor);
    tell("configure", build.configurePlugin(in.data(), inputs, outputs_.data(), outputs));
    workspace_ = build.getWorkspaceSize(in.data(), inputs, outputs_.data(), outputs);
    std::cout << "workspace " << workspace_ << "\ntactics " << build.getNbTactics() << std::endl;
}

/// The dtypes that are taken for each tensor, those of the tensors before it being as they are.
void Driver::ask_formats(IPluginV3OneBuildV2& build) {
    std::vector<DynamicPluginTensorDesc> all;
    for (const Input& each : inputs_) all.push_back(each.tensor);
    all.insert(all.end(), outputs_.begin(), outputs_.end());
    for (std::size_t i = 0; i < all.size(); ++i) {
        const PluginTensorDesc real = all[i].desc;
        std::cout << "formats";
        for (const auto& [name, type] : types) {
            all[i].desc.type = type.first;
            all[i].desc.format = TensorFormat::kCHW4;
            if (build.supportsFormatCombination(i, all.data(), inputs_.size(), outputs_.size())) end("takes kCHW4");
            all[i].desc.format = TensorFormat::kLINEAR;
            if (build.supportsFormatCombination(i, all.data(), inputs_.size(), outputs_.size())) std::cout << " " << name;
        }
        std::cout << std::endl;
        all[i].desc = real;
    }
    if (build.supportsFormatCombination(all.size(), all.data(), inputs_.size(), outputs_.size())) end("takes no tensor");
}

void Driver::reload() {
    auto* runtime = capability<IPluginV3OneRuntime>(*plugin_, PluginCapabilityType::kRUNTIME);
    const std::vector<char> bytes = serialised(*runtime->getFieldsToSerialize());
    std::size_t refused = 0;
    finder_.logger.quiet = true;
    finder_.logger.told = 0;
    for (std::size_t size = 0; size <= bytes.size(); ++size) {
        const std::vector<Field> fields = parsed(bytes, size);
        const std::vector<PluginField> parts = passed(fields);
        const PluginFieldCollection collection{static_cast<std::int32_t>(parts.size()), parts.data()};
        plugin_.reset(creator_->createPlugin("layer", &collection, TensorRTPhase::kRUNTIME));
        refused += plugin_ ? 0 : 1;
    }
    finder_.logger.quiet = false;
    std::cout << "reloaded " << (plugin_ ? 1 : 0) << ", refused " << refused << " of " << bytes.size() << ", told "
              << finder_.logger.told << std::endl;
}

void Driver::attach() {
    if (!plugin_) end("attaches no plugin");
    attached_.reset(
        capability<IPluginV3OneRuntime>(*plugin_, PluginCapabilityType::kRUNTIME)->attachToContext(nullptr));
    std::cout << "attached " << (attached_ ? 1 : 0) << std::endl;
}

void Driver::run(std::istream& arguments) {
    if (!attached_) {
        std::cout << "run without a context" << std::endl;
        return;
    }
    std::string prefix;
    arguments >> prefix;
    auto& runtime = *capability<IPluginV3OneRuntime>(*attached_, PluginCapabilityType::kRUNTIME);
    std::vector<PluginTensorDesc> in, out;
    std::vector<const void*> given;
    std::vector<void*> made;
    std::vector<Memory> memory;
    for (const Input& each : inputs_) {
        in.push_back(each.tensor.desc);
        given.push_back(each.memory.get());
    }
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
        out.push_back(outputs_[i].desc);
        const auto shared = shared_.find(i);
        if (shared == shared_.end()) memory.push_back(memory_of(bytes_of(out[i])));
        made.push_back(shared == shared_.end() ? memory.back().get() : inputs_[shared->second].memory.get());
    }
    const Memory workspace = memory_of(workspace_);
    tell("tactic", runtime.setTactic(0));
    tell("shape", runtime.onShapeChange(in.data(), in.size(), out.data(), out.size()));
    const int code = runtime.enqueue(in.data(), out.data(), given.data(), made.data(),
                                     workspace_ ? workspace.get() : nullptr, nullptr);
    std::cout << "enqueue " << code << std::endl;
    for (std::size_t i = 0; i < out.size(); ++i)
        std::ofstream(prefix + std::to_string(i), std::ios::binary)
            .write(static_cast<const char*>(made[i]), static_cast<std::streamsize>(bytes_of(out[i])));
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 2 && count != 3) end("needs a library");
    Driver driver(arguments[1], count == 3 ? arguments[2] : nullptr);
    for (std::string line; std::getline(std::cin, line);) {
        std::stringstream words(line);
        std::string command;
        if (words >> command) driver.obey(command, words);
    }
    return 0;
}
