// Drives the plugin library through TensorRT's own interfaces with no TensorRT, for tests by ctypes.
//
// Every function returns what the plugin returned; what it logged is in harness_log().
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace nvinfer1;

namespace {

std::string log_text;

class Logger final : public ILogger {
  void log(Severity severity, const char* message) noexcept override {
    log_text += std::to_string(static_cast<int>(severity)) + " " + message + "\n";
  }
} logger;

class Finder final : public ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

// A size as an expression: a value that the plugin may or may not look at while it is building.
class Expression final : public IDimensionExpr, private apiv::VDimensionExpr {
 public:
  Expression(std::int64_t value, bool constant) : value_(value), constant_(constant) { mImpl = this; }
  ~Expression() noexcept override = default;
  std::int64_t value() const { return value_; }
  bool isConstant() const override { return constant_; }

 private:
  std::int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

  std::int64_t value_;
  bool constant_;
};

class Builder final : public IExprBuilder, private apiv::VExprBuilder {
 public:
  Builder() { mImpl = this; }
  ~Builder() noexcept override = default;
  const Expression* make(std::int64_t value, bool is_constant) { return &made_.emplace_back(value, is_constant); }

 private:
  const IDimensionExpr* constant(std::int64_t value) override { return make(value, true); }
  const IDimensionExpr* operation(
      DimensionOperation operation, const IDimensionExpr& first, const IDimensionExpr& second) override {
    const auto &a = static_cast<const Expression&>(first), &b = static_cast<const Expression&>(second);
    const bool known = a.isConstant() && b.isConstant();
    switch (operation) {
      case DimensionOperation::kSUM: return make(a.value() + b.value(), known);
      case DimensionOperation::kPROD: return make(a.value() * b.value(), known);
      case DimensionOperation::kSUB: return make(a.value() - b.value(), known);
      case DimensionOperation::kFLOOR_DIV: return make(a.value() / b.value(), known);
      default: return nullptr;
    }
  }
  const IDimensionExpr* declareSizeTensor(std::int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
    return nullptr;
  }

  std::deque<Expression> made_;
};

struct Library {
  IPluginCreatorInterface* const* creators;
  std::int32_t count;

  IPluginCreatorV3One* creator(const std::string& name) const {
    for (std::int32_t i = 0; i < count; ++i) {
      auto* const creator = static_cast<IPluginCreatorV3One*>(creators[i]);
      if (name == creator->getPluginName()) return creator;
    }
    return nullptr;
  }
};

// One line a field: name, type, value.
std::string text(const PluginFieldCollection& fields) {
  std::ostringstream out;
  for (std::int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    out << field.name << ' ' << static_cast<std::int32_t>(field.type) << ' ';
    if (field.data == nullptr) {
      out << "none";
    } else if (field.type == PluginFieldType::kCHAR) {
      out << std::string(static_cast<const char*>(field.data), static_cast<std::size_t>(field.length));
    } else if (field.type == PluginFieldType::kFLOAT32) {
      out.precision(9);
      out << *static_cast<const float*>(field.data);
    } else {
      out << *static_cast<const std::int32_t*>(field.data);
    }
    out << '\n';
  }
  return out.str();
}

const char* kept(std::string value) {
  static std::string keep;
  keep = std::move(value);
  return keep.c_str();
}

}  // namespace

struct Tensor {
  std::int32_t rank;
  std::int64_t sizes[4];
  std::int32_t type;
  std::int32_t format;
};

namespace {

PluginTensorDesc description(const Tensor& tensor) {
  PluginTensorDesc result{};
  result.dims.nbDims = tensor.rank;
  for (std::int32_t i = 0; i < tensor.rank; ++i) {
    result.dims.d[i] = static_cast<std::remove_reference_t<decltype(result.dims.d[i])>>(tensor.sizes[i]);
  }
  result.type = static_cast<DataType>(tensor.type);
  result.format = static_cast<TensorFormat>(tensor.format);
  return result;
}

std::vector<PluginTensorDesc> descriptions(const Tensor* tensors, std::int32_t count) {
  std::vector<PluginTensorDesc> result;
  for (std::int32_t i = 0; i < count; ++i) result.push_back(description(tensors[i]));
  return result;
}

std::vector<DynamicPluginTensorDesc> dynamic(const Tensor* tensors, std::int32_t count) {
  std::vector<DynamicPluginTensorDesc> result;
  for (const PluginTensorDesc& desc : descriptions(tensors, count)) {
    DynamicPluginTensorDesc one{};
    one.desc = desc;
    one.min = one.max = one.opt = desc.dims;
    for (std::int32_t i = 0; i < desc.dims.nbDims; ++i) one.desc.dims.d[i] = -1;
    result.push_back(one);
  }
  return result;
}

IPluginV3OneBuild* build_of(IPluginV3* plugin) {
  return static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime* runtime_of(IPluginV3* plugin) {
  return static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

}  // namespace

EXPORT const char* harness_log() {
  const char* const result = kept(log_text);
  log_text.clear();
  return result;
}

EXPORT std::int32_t harness_tensorrt() { return NV_TENSORRT_MAJOR; }

EXPORT Library* harness_open(const char* path) {
  void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    log_text += dlerror();
    return nullptr;
  }
  using GetCreators = IPluginCreatorInterface* const*(std::int32_t&);
  auto* const get = reinterpret_cast<GetCreators*>(dlsym(handle, "getCreators"));
  auto* const set = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"));
  if (get == nullptr || set == nullptr) {
    log_text += "getCreators or setLoggerFinder is missing";
    return nullptr;
  }
  set(&finder);
  auto* const library = new Library{};
  library->creators = get(library->count);
  return library;
}

// One line a creator: interface, name, version, namespace; then its fields, indented.
EXPORT const char* harness_creators(const Library* library) {
  std::string result;
  for (std::int32_t i = 0; i < library->count; ++i) {
    const InterfaceInfo info = library->creators[i]->getInterfaceInfo();
    auto* const creator = static_cast<IPluginCreatorV3One*>(library->creators[i]);
    result += std::string(info.kind) + " " + std::to_string(info.major) + "|" + creator->getPluginName() + "|" +
              creator->getPluginVersion() + "|" + creator->getPluginNamespace() + "\n" + text(*creator->getFieldNames());
  }
  return kept(result);
}

// A field with the raw bytes of its value.
struct Field {
  const char* name;
  std::int32_t type;
  std::int32_t length;
  const void* data;
};

EXPORT IPluginV3* harness_create(const Library* library, const char* op, const Field* fields, std::int32_t count) {
  std::vector<PluginField> given;
  for (std::int32_t i = 0; i < count; ++i) {
    given.emplace_back(fields[i].name, fields[i].data, static_cast<PluginFieldType>(fields[i].type), fields[i].length);
  }
  const PluginFieldCollection collection{count, given.data()};
  return library->creator(op)->createPlugin("layer", &collection, TensorRTPhase::kBUILD);
}

// What an engine does with a plugin: its fields are copied as bytes and a plugin is made of the copy.
EXPORT IPluginV3* harness_recreate(const Library* library, const char* op, IPluginV3* plugin) {
  const PluginFieldCollection* const fields = runtime_of(plugin)->getFieldsToSerialize();
  std::deque<std::string> names, data;
  std::vector<PluginField> copies;
  for (std::int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const std::size_t size = field.type == PluginFieldType::kCHAR ? 1 : 4;
    names.emplace_back(field.name);
    data.emplace_back(static_cast<const char*>(field.data), size * static_cast<std::size_t>(field.length));
    copies.emplace_back(names.back().c_str(), data.back().data(), field.type, field.length);
  }
  const PluginFieldCollection collection{fields->nbFields, copies.data()};
  return library->creator(op)->createPlugin("layer", &collection, TensorRTPhase::kRUNTIME);
}

EXPORT IPluginV3* harness_clone(IPluginV3* plugin) { return plugin->clone(); }
EXPORT IPluginV3* harness_attach(IPluginV3* plugin) { return runtime_of(plugin)->attachToContext(nullptr); }
EXPORT void harness_destroy(IPluginV3* plugin) { delete plugin; }
EXPORT const char* harness_fields(IPluginV3* plugin) { return kept(text(*runtime_of(plugin)->getFieldsToSerialize())); }
EXPORT const char* harness_timing_id(IPluginV3* plugin) { return build_of(plugin)->getTimingCacheID(); }
EXPORT std::int32_t harness_outputs(IPluginV3* plugin) { return build_of(plugin)->getNbOutputs(); }

// Fills the sizes of `outputs`. With `known` the plugin sees the input sizes as constants.
EXPORT std::int32_t harness_shapes(
    IPluginV3* plugin, const Tensor* inputs, std::int32_t input_count, Tensor* outputs, std::int32_t count, bool known) {
  Builder builder;
  std::vector<DimsExprs> in(static_cast<std::size_t>(input_count)), out(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < in.size(); ++i) {
    in[i].nbDims = inputs[i].rank;
    for (std::int32_t axis = 0; axis < inputs[i].rank; ++axis) in[i].d[axis] = builder.make(inputs[i].sizes[axis], known);
  }
  const std::int32_t status =
      build_of(plugin)->getOutputShapes(in.data(), input_count, nullptr, 0, out.data(), count, builder);
  for (std::size_t i = 0; status == 0 && i < out.size(); ++i) {
    outputs[i].rank = out[i].nbDims;
    for (std::int32_t axis = 0; axis < out[i].nbDims; ++axis) {
      outputs[i].sizes[axis] = static_cast<const Expression*>(out[i].d[axis])->value();
    }
  }
  return status;
}

EXPORT std::int32_t harness_types(
    IPluginV3* plugin, const std::int32_t* inputs, std::int32_t input_count, std::int32_t* outputs, std::int32_t count) {
  std::vector<DataType> in(static_cast<std::size_t>(input_count)), out(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<DataType>(inputs[i]);
  const std::int32_t status = build_of(plugin)->getOutputDataTypes(out.data(), count, in.data(), input_count);
  for (std::size_t i = 0; i < out.size(); ++i) outputs[i] = static_cast<std::int32_t>(out[i]);
  return status;
}

EXPORT bool harness_supports(
    IPluginV3* plugin, std::int32_t position, const Tensor* tensors, std::int32_t inputs, std::int32_t outputs) {
  const auto all = dynamic(tensors, inputs + outputs);
  return build_of(plugin)->supportsFormatCombination(position, all.data(), inputs, outputs);
}

EXPORT std::int32_t harness_configure(
    IPluginV3* plugin, const Tensor* tensors, std::int32_t inputs, std::int32_t outputs) {
  const auto all = dynamic(tensors, inputs + outputs);
  return build_of(plugin)->configurePlugin(all.data(), inputs, all.data() + inputs, outputs);
}

EXPORT std::size_t harness_workspace(
    IPluginV3* plugin, const Tensor* tensors, std::int32_t inputs, std::int32_t outputs) {
  const auto all = dynamic(tensors, inputs + outputs);
  return build_of(plugin)->getWorkspaceSize(all.data(), inputs, all.data() + inputs, outputs);
}

EXPORT std::int32_t harness_shape_change(
    IPluginV3* plugin, const Tensor* tensors, std::int32_t inputs, std::int32_t outputs) {
  const auto all = descriptions(tensors, inputs + outputs);
  return runtime_of(plugin)->onShapeChange(all.data(), inputs, all.data() + inputs, outputs);
}

EXPORT std::int32_t harness_enqueue(IPluginV3* plugin, const Tensor* tensors, std::int32_t inputs, std::int32_t outputs,
    void** data, void* workspace, void* stream) {
  const auto all = descriptions(tensors, inputs + outputs);
  return runtime_of(plugin)->enqueue(all.data(), all.data() + inputs, data, data + inputs, workspace,
      static_cast<cudaStream_t>(stream));
}
