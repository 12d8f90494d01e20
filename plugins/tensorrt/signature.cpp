#include "signature.h"

#include <limits>

namespace ernie::plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

const char* name_of(DataType type) {
    switch (static_cast<int>(type)) {
        case static_cast<int>(DataType::kFLOAT): return "fp32";
        case static_cast<int>(DataType::kHALF): return "fp16";
        case static_cast<int>(DataType::kINT8): return "int8";
        case static_cast<int>(DataType::kINT32): return "int32";
        case static_cast<int>(DataType::kBOOL): return "bool";
        case static_cast<int>(DataType::kUINT8): return "uint8";
        case static_cast<int>(DataType::kFP8): return "fp8";
        case static_cast<int>(DataType::kBF16): return "bf16";
        case static_cast<int>(DataType::kINT64): return "int64";
        case static_cast<int>(DataType::kINT4): return "int4";
        default: return "another dtype";
    }
}

const char* wanted(Element element, DataType activation) {
    switch (element) {
        case Element::activation: return takes(element, activation, activation) ? name_of(activation) : "fp16 or bf16";
        case Element::codes: return "int8 or int32 (packed)";
        case Element::fp16: return "fp16";
        case Element::fp32: return "fp32";
        case Element::int32: return "int32";
        default: return "int64";
    }
}

/// Elements of codes are declared some bytes at a time; all others are counted one by one.
std::int64_t bytes_at_a_time(const Tensor& tensor, std::size_t axis, DataType type) {
    const bool packed = tensor.element == Element::codes && axis + 1 == tensor.shape.size();
    return packed && type == DataType::kINT32 ? 4 : 1;
}

/// -1: it is no whole number.
std::int64_t extent(const Axis& axis, std::int64_t size, std::int64_t at_a_time) {
    const std::int64_t product = size * axis.times, divisor = axis.over * at_a_time;
    return product % divisor ? -1 : product / divisor;
}

bool fits(const Axis& axis, std::int64_t dim, std::int64_t at_a_time, Sizes& sizes) {
    if (dim < 0 || dim > std::numeric_limits<std::int32_t>::max()) return false;
    if (!sizes.known(axis.letter)) {
        const std::int64_t product = dim * axis.over * at_a_time;
        if (product % axis.times || product / axis.times > std::numeric_limits<std::int32_t>::max()) return false;
        sizes.set(axis.letter, static_cast<std::int32_t>(product / axis.times));
    }
    return extent(axis, sizes[axis.letter], at_a_time) == dim;
}

std::string text_of(const Dims& dims) {
    std::string text;
    for (int i = 0; i < dims.nbDims && i < Dims::MAX_DIMS; ++i)
        text += (i ? ", " : "") + std::to_string(dims.d[i]);
    return "[" + text + "]";
}

std::string text_of(const Tensor& tensor, DataType type, const Sizes& sizes) {
    std::string text;
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
        const Axis& axis = tensor.shape[i];
        if (i) text += ", ";
        const std::int64_t size =
            sizes.known(axis.letter) ? extent(axis, sizes[axis.letter], bytes_at_a_time(tensor, i, type)) : -1;
        if (size >= 0) {
            text += std::to_string(size);
        } else {
            text += sizes.known(axis.letter) ? std::to_string(sizes[axis.letter]) : std::string(1, axis.letter);
            if (axis.times != 1) text += "·" + std::to_string(axis.times);
            if (axis.over != 1) text += "/" + std::to_string(axis.over);
        }
    }
    return "[" + text + "]";
}

}  // namespace

bool takes(Element element, DataType type, DataType activation) {
    switch (element) {
        case Element::activation: return type == activation && (type == DataType::kHALF || type == DataType::kBF16);
        case Element::codes: return type == DataType::kINT8 || type == DataType::kINT32;
        case Element::fp16: return type == DataType::kHALF;
        case Element::fp32: return type == DataType::kFLOAT;
        case Element::int32: return type == DataType::kINT32;
        default: return type == DataType::kINT64;
    }
}

Problem check_type(const Tensor& tensor, DataType type, DataType activation) {
    if (takes(tensor.element, type, activation)) return {};
    return std::string(tensor.name) + " is " + name_of(type) + "; it must be " + wanted(tensor.element, activation);
}

Problem check(const Tensor& tensor, const Given& given, DataType activation, Sizes& sizes) {
    if (Problem wrong = check_type(tensor, given.type, activation); !wrong.empty()) return wrong;
    if (given.format != nvinfer1::TensorFormat::kLINEAR)
        return std::string(tensor.name) + " is not in the linear format";
    bool right = given.dims->nbDims == static_cast<int>(tensor.shape.size());
    for (std::size_t i = 0; right && i < tensor.shape.size(); ++i)
        right = fits(tensor.shape[i], given.dims->d[i], bytes_at_a_time(tensor, i, given.type), sizes);
    if (right) return {};
    return std::string(tensor.name) + " has the shape " + text_of(*given.dims) + " in " + name_of(given.type) +
           "; it must be " + text_of(tensor, given.type, sizes);
}

}  // namespace ernie::plugin
