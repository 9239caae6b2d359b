// What TensorRT asks of every plugin, answered from what an Op says of itself.
#include "plugin.h"

#include <array>
#include <cstdio>

namespace autovoice::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimensionOperation;

constexpr std::size_t kMostTensors = 8;

std::string text(const Dims& dims) {
  std::string result = "[";
  for (std::int32_t i = 0; i < dims.nbDims; ++i) {
    result += (i > 0 ? ", " : "") + std::to_string(static_cast<std::int64_t>(dims.d[i]));
  }
  return result + "]";
}

std::string text(const Tensor& tensor, std::int32_t hop) {
  std::string result = "[";
  for (const Extent& extent : tensor.shape) {
    const std::string names[] = {"B", "F", std::to_string(hop) + " F", std::to_string(extent.number)};
    result += (result.size() > 1 ? ", " : "") + names[extent.kind];
  }
  return result + "]";
}

// All attributes with their exact values: plugins with equal ones are the same to the timing cache.
std::string identity(Op& op) {
  std::string result = op.name();
  for (const Attribute& attribute : op.attributes()) {
    result += std::string(" ") + attribute.name + "=";
    if (const auto* const* number = std::get_if<std::int32_t*>(&attribute.value)) result += std::to_string(**number);
    if (const auto* const* string = std::get_if<std::string*>(&attribute.value)) result += **string;
    if (const auto* const* real = std::get_if<float*>(&attribute.value)) {
      char digits[32];
      std::snprintf(digits, sizeof digits, "%.9g", static_cast<double>(**real));
      result += digits;
    }
  }
  return result;
}

bool is_supported(const Tensor& tensor, DataType type) {
  return type == DataType::kFLOAT || (type == DataType::kHALF && tensor.type == Tensor::kFloatOrHalf);
}

autovoice_samples samples(const void* data, DataType type) {
  return {const_cast<void*>(data), type == DataType::kHALF ? AUTOVOICE_FLOAT16 : AUTOVOICE_FLOAT32};
}

}  // namespace

Plugin::Plugin(std::unique_ptr<Op> op)
    : op_(std::move(op)),
      inputs_(op_->inputs()),
      outputs_(op_->outputs()),
      fields_(fields_of(*op_)),
      serialised_{static_cast<std::int32_t>(fields_.size()), fields_.data()},
      identity_(identity(*op_)) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded(getPluginName(), static_cast<nvinfer1::IPluginV3*>(nullptr), [&]() -> nvinfer1::IPluginV3* {
    return new Plugin(op_->clone());
  });
}

void Plugin::require_counts(std::int32_t inputs, std::int32_t outputs) const {
  if (inputs != static_cast<std::int32_t>(inputs_.size())) {
    std::string names;
    for (const Tensor& tensor : inputs_) names += (names.empty() ? "" : ", ") + std::string(tensor.name);
    throw Problem("the node has " + std::to_string(inputs) + " inputs, but takes " + names + ".");
  }
  if (outputs != getNbOutputs()) {
    throw Problem(
        "the node has " + std::to_string(outputs) + " outputs, but makes " + std::to_string(getNbOutputs()) + ".");
  }
}

void Plugin::measure(const Tensor& tensor, const Dims& dims, Sizes& sizes) const {
  const auto refuse_shape = [&](const std::string& remedy) {
    throw Problem(std::string(tensor.name) + " has shape " + text(dims) + ", but " + text(tensor, op_->hop()) +
                  " is needed; " + remedy);
  };
  if (dims.nbDims != static_cast<std::int32_t>(tensor.shape.size())) refuse_shape("reshape it.");
  for (std::int32_t i = 0; i < dims.nbDims; ++i) {
    const Extent extent = tensor.shape[static_cast<std::size_t>(i)];
    std::int64_t size = dims.d[i];
    if (size == -1) continue;
    if (size < 1) refuse_shape("nothing may be empty.");
    if (extent.kind == Extent::kNumber) {
      if (size != extent.number) refuse_shape("reshape it.");
      continue;
    }
    if (extent.kind == Extent::kSamples) {
      if (size % op_->hop() != 0) refuse_shape("pad it with zeros to a multiple of hop=" + std::to_string(op_->hop()) + ".");
      size /= op_->hop();
    }
    std::int64_t& agreed = extent.kind == Extent::kBatch ? sizes.batch : sizes.frames;
    if (agreed != -1 && agreed != size) {
      refuse_shape((extent.kind == Extent::kBatch ? "the other inputs have B=" : "the other inputs have F=") +
                   std::to_string(agreed) + ".");
    }
    agreed = size;
  }
}

std::int32_t Plugin::getOutputDataTypes(
    DataType* types, std::int32_t outputs, const DataType* input_types, std::int32_t inputs) const noexcept {
  return guarded(getPluginName(), -1, [&] {
    require_counts(inputs, outputs);
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      types[i] = outputs_[i].like < 0 ? DataType::kFLOAT : input_types[outputs_[i].like];
    }
    return 0;
  });
}

std::int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* input_shapes, std::int32_t inputs,
    const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* output_shapes, std::int32_t outputs,
    nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(getPluginName(), -1, [&] {
    require_counts(inputs, outputs);
    // What is known of the shapes must fit already; the rest is checked when it is known.
    agreed([&](std::size_t input) {
      const nvinfer1::DimsExprs& shape = input_shapes[input];
      Dims dims{};
      dims.nbDims = shape.nbDims;
      for (std::int32_t i = 0; i < shape.nbDims && i < Dims::MAX_DIMS; ++i) {
        dims.d[i] = shape.d[i]->isConstant() ? shape.d[i]->getConstantValue() : -1;
      }
      return dims;
    });
    const nvinfer1::IDimensionExpr* sizes[4] = {};
    for (std::size_t input = 0; input < inputs_.size(); ++input) {
      for (std::size_t i = 0; i < inputs_[input].shape.size(); ++i) {
        const nvinfer1::IDimensionExpr*& size = sizes[inputs_[input].shape[i].kind];
        if (size == nullptr) size = input_shapes[input].d[i];
      }
    }
    const nvinfer1::IDimensionExpr& hop = *builder.constant(op_->hop());
    auto *&frames = sizes[Extent::kFrames], *&samples = sizes[Extent::kSamples];
    if (frames == nullptr) frames = builder.operation(DimensionOperation::kFLOOR_DIV, *samples, hop);
    if (samples == nullptr) samples = builder.operation(DimensionOperation::kPROD, *frames, hop);
    for (std::size_t output = 0; output < outputs_.size(); ++output) {
      const std::vector<Extent>& shape = outputs_[output].shape;
      output_shapes[output].nbDims = static_cast<std::int32_t>(shape.size());
      for (std::size_t i = 0; i < shape.size(); ++i) {
        output_shapes[output].d[i] =
            shape[i].kind == Extent::kNumber ? builder.constant(shape[i].number) : sizes[shape[i].kind];
      }
    }
    return 0;
  });
}

bool Plugin::supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
    std::int32_t inputs, std::int32_t outputs) noexcept {
  return guarded(getPluginName(), false, [&] {
    require_counts(inputs, outputs);
    const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
    const Tensor& wanted = position < inputs ? inputs_[static_cast<std::size_t>(position)]
                                             : outputs_[static_cast<std::size_t>(position - inputs)];
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && is_supported(wanted, tensor.type);
  });
}

std::int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* input_tensors, std::int32_t inputs,
    const nvinfer1::DynamicPluginTensorDesc*, std::int32_t outputs) noexcept {
  return guarded(getPluginName(), -1, [&] {
    require_counts(inputs, outputs);
    agreed([&](std::size_t i) -> const Dims& { return input_tensors[i].min; });
    agreed([&](std::size_t i) -> const Dims& { return input_tensors[i].opt; });
    agreed([&](std::size_t i) -> const Dims& { return input_tensors[i].max; });
    return 0;
  });
}

std::size_t Plugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* input_tensors, std::int32_t,
    const nvinfer1::DynamicPluginTensorDesc*, std::int32_t) const noexcept {
  return guarded(getPluginName(), std::size_t{0}, [&] {
    const Sizes sizes = agreed([&](std::size_t i) -> const Dims& { return input_tensors[i].max; });
    return op_->workspace(sizes.batch, sizes.frames);
  });
}

std::int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* input_tensors, std::int32_t inputs,
    const nvinfer1::PluginTensorDesc*, std::int32_t outputs) noexcept {
  return guarded(getPluginName(), -1, [&] {
    require_counts(inputs, outputs);
    agreed([&](std::size_t i) -> const Dims& { return input_tensors[i].dims; });
    return 0;
  });
}

std::int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc* input_tensors,
    const nvinfer1::PluginTensorDesc* output_tensors, const void* const* inputs, void* const* outputs, void* workspace,
    cudaStream_t stream) noexcept {
  return guarded(getPluginName(), -1, [&] {
    const Sizes sizes = agreed([&](std::size_t i) -> const Dims& { return input_tensors[i].dims; });
    std::array<autovoice_samples, kMostTensors> in{}, out{};
    for (std::size_t i = 0; i < inputs_.size(); ++i) in[i] = samples(inputs[i], input_tensors[i].type);
    for (std::size_t i = 0; i < outputs_.size(); ++i) out[i] = samples(outputs[i], output_tensors[i].type);
    if (op_->enqueue(sizes.batch, sizes.frames, in.data(), out.data(), workspace, stream) != 0) {
      throw Problem(autovoice_last_error());
    }
    return 0;
  });
}

Creator::Creator(MakeOp make)
    : make_(make),
      op_(make()),
      fields_(fields_of(*op_)),
      names_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginV3* Creator::createPlugin(
    const char*, const nvinfer1::PluginFieldCollection* fields, nvinfer1::TensorRTPhase) noexcept {
  return guarded(getPluginName(), static_cast<nvinfer1::IPluginV3*>(nullptr), [&]() -> nvinfer1::IPluginV3* {
    std::unique_ptr<Op> op = make_();
    configure(*op, fields);
    return new Plugin(std::move(op));
  });
}

}  // namespace autovoice::tensorrt
