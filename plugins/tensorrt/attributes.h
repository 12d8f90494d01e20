// The attributes of an operator: those of its ONNX function, each an integer or a float.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "../kernels/launch.h"

namespace ernie::plugin {

struct Attribute {
    const char* name;
    nvinfer1::PluginFieldType type;  // kINT32 or kFLOAT32
    char letter = 0;                 // the size that it says, where it says one: see Axis
    std::int32_t integer = 0;
    float real = 0;
};

constexpr Attribute integer(const char* name, char letter = 0) {
    return {name, nvinfer1::PluginFieldType::kINT32, letter};
}
constexpr Attribute real(const char* name) { return {name, nvinfer1::PluginFieldType::kFLOAT32}; }

class Attributes {
  public:
    explicit Attributes(std::vector<Attribute> all) : all_(std::move(all)) {}

    /// Takes the value of each from the fields of that name; others are left alone.  A field that is not there,
    /// of another type, or cut short is a problem.
    Problem read(const nvinfer1::PluginFieldCollection* fields);

    /// A field for each, which points into this object.
    std::vector<nvinfer1::PluginField> fields() const;

    std::int32_t integer(const char* name) const { return at(name).integer; }
    float real(const char* name) const { return at(name).real; }
    const std::vector<Attribute>& all() const { return all_; }
    /// `bits=4 block_size=128 …`
    std::string text() const;

  private:
    const Attribute& at(const char* name) const;
    std::vector<Attribute> all_;
};

}  // namespace ernie::plugin
