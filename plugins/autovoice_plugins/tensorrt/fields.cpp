// Attributes to and from TensorRT's plugin fields.
#include <cstdint>
#include <limits>
#include <set>
#include <type_traits>

#include "plugin.h"

namespace autovoice::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

std::string type_name(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kFLOAT16: return "FLOAT16";
    case PluginFieldType::kFLOAT32: return "FLOAT32";
    case PluginFieldType::kFLOAT64: return "FLOAT64";
    case PluginFieldType::kINT8: return "INT8";
    case PluginFieldType::kINT16: return "INT16";
    case PluginFieldType::kINT32: return "INT32";
    case PluginFieldType::kINT64: return "INT64";
    case PluginFieldType::kCHAR: return "CHAR";
    default: return "number " + std::to_string(static_cast<std::int32_t>(type));
  }
}

[[noreturn]] void refuse_field(const PluginField& field, const char* wanted) {
  throw Problem(std::string(field.name) + " must be " + wanted + ", but the field is of type " + type_name(field.type) +
                " and length " + std::to_string(field.length) + "; give it as the ONNX node has it.");
}

void assign(std::int32_t& value, const PluginField& field) {
  if (field.data != nullptr && field.length == 1 && field.type == PluginFieldType::kINT32) {
    value = *static_cast<const std::int32_t*>(field.data);
    return;
  }
  if (field.data != nullptr && field.length == 1 && field.type == PluginFieldType::kINT64) {
    const std::int64_t wide = *static_cast<const std::int64_t*>(field.data);
    using Limits = std::numeric_limits<std::int32_t>;
    if (wide < Limits::min() || wide > Limits::max()) {
      throw Problem(std::string(field.name) + "=" + std::to_string(wide) + " does not fit 32 bits; use a smaller one.");
    }
    value = static_cast<std::int32_t>(wide);
    return;
  }
  refuse_field(field, "one INT32");
}

void assign(float& value, const PluginField& field) {
  if (field.data == nullptr || field.length != 1 || field.type != PluginFieldType::kFLOAT32) {
    refuse_field(field, "one FLOAT32");
  }
  value = *static_cast<const float*>(field.data);
}

void assign(std::string& value, const PluginField& field) {
  if (field.data == nullptr || field.length < 0 || field.type != PluginFieldType::kCHAR) refuse_field(field, "CHAR");
  value.assign(static_cast<const char*>(field.data), static_cast<std::size_t>(field.length));
  // Some count the terminator.
  while (!value.empty() && value.back() == '\0') value.pop_back();
}

}  // namespace

std::vector<PluginField> fields_of(Op& op) {
  std::vector<PluginField> fields;
  for (const Attribute& attribute : op.attributes()) {
    std::visit(
        [&](auto* value) {
          using Value = std::decay_t<decltype(*value)>;
          if constexpr (std::is_same_v<Value, std::string>) {
            fields.emplace_back(
                attribute.name, value->data(), PluginFieldType::kCHAR, static_cast<std::int32_t>(value->size()));
          } else {
            constexpr auto kType = std::is_same_v<Value, float> ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32;
            fields.emplace_back(attribute.name, value, kType, 1);
          }
        },
        attribute.value);
  }
  return fields;
}

void configure(Op& op, const nvinfer1::PluginFieldCollection* fields) {
  if (fields == nullptr) throw Problem("no fields were passed; pass a collection, it may be empty.");
  const std::vector<Attribute> attributes = op.attributes();
  std::set<std::string> seen;
  for (std::int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const std::string name = field.name == nullptr ? "" : field.name;
    // These name the plugin itself.
    if (name == "plugin_namespace" || name == "plugin_version") continue;
    if (!seen.insert(name).second) throw Problem("the field " + name + " is given twice; give it once.");
    const Attribute* found = nullptr;
    std::string known;
    for (const Attribute& attribute : attributes) {
      if (name == attribute.name) found = &attribute;
      known += (known.empty() ? "" : ", ") + std::string(attribute.name);
    }
    if (found == nullptr) throw Problem("the field \"" + name + "\" is unknown; known are " + known + ".");
    std::visit([&](auto* value) { assign(*value, field); }, found->value);
  }
  op.validate();
}

}  // namespace autovoice::tensorrt
