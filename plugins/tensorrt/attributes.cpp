#include "attributes.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace ernie::plugin {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

bool is_float(const Attribute& attribute) { return attribute.type == PluginFieldType::kFLOAT32; }

Problem read_integer(const PluginField& field, Attribute& into) {
    std::int64_t value = 0;
    if (field.type == PluginFieldType::kINT32) {
        std::int32_t narrow;
        std::memcpy(&narrow, field.data, sizeof(narrow));
        value = narrow;
    } else if (field.type == PluginFieldType::kINT64) {
        std::memcpy(&value, field.data, sizeof(value));
    } else {
        return problem("the attribute %s is not an integer", into.name);
    }
    into.integer = static_cast<std::int32_t>(value);
    if (into.integer == value) return {};
    return problem("the attribute %s is %lld; that is out of range", into.name, static_cast<long long>(value));
}

Problem read_real(const PluginField& field, Attribute& into) {
    if (field.type != PluginFieldType::kFLOAT32) return problem("the attribute %s is not a float", into.name);
    std::memcpy(&into.real, field.data, sizeof(into.real));
    if (std::isfinite(into.real)) return {};
    return problem("the attribute %s is not finite", into.name);
}

Problem read_from(const nvinfer1::PluginFieldCollection& fields, Attribute& into) {
    for (std::int32_t i = 0; i < fields.nbFields; ++i) {
        const PluginField& field = fields.fields[i];
        if (!field.name || std::strcmp(field.name, into.name) != 0) continue;
        if (!field.data || field.length != 1) return problem("the attribute %s has no value", into.name);
        return is_float(into) ? read_real(field, into) : read_integer(field, into);
    }
    return problem("the attribute %s is missing", into.name);
}

}  // namespace

Problem Attributes::read(const nvinfer1::PluginFieldCollection* fields) {
    if (!fields || fields->nbFields < 0 || (fields->nbFields > 0 && !fields->fields)) return "there are no attributes";
    for (Attribute& attribute : all_)
        if (Problem wrong = read_from(*fields, attribute); !wrong.empty()) return wrong;
    return {};
}

std::vector<PluginField> Attributes::fields() const {
    std::vector<PluginField> fields;
    for (const Attribute& each : all_) {
        const void* value = is_float(each) ? static_cast<const void*>(&each.real) : &each.integer;
        fields.emplace_back(each.name, value, each.type, 1);
    }
    return fields;
}

const Attribute& Attributes::at(const char* name) const {
    const Attribute* found = all_.data();
    while (std::strcmp(found->name, name) != 0) ++found;  // the names are literals of this library
    return *found;
}

std::string Attributes::text() const {
    std::string text;
    for (const Attribute& each : all_) {
        char value[32];
        if (is_float(each))
            std::snprintf(value, sizeof(value), "%.*g", std::numeric_limits<float>::max_digits10, each.real);
        else
            std::snprintf(value, sizeof(value), "%d", each.integer);
        text += (text.empty() ? "" : " ") + std::string(each.name) + "=" + value;
    }
    return text;
}

}  // namespace ernie::plugin
