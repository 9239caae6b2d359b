// Any Op as a TensorRT plugin, and its creator.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "op.h"

namespace autovoice::tensorrt {

constexpr const char* kNamespace = "autovoice";
constexpr const char* kVersion = "1";

// Sends a message to TensorRT's logger, or to stderr where there is none.
void report(const std::string& message) noexcept;

// Runs `action`; what it throws is reported in one line and becomes `otherwise`.
template <class Result, class Action>
Result guarded(const char* op, Result otherwise, Action action) noexcept {
  try {
    return action();
  } catch (const std::exception& problem) {
    try {
      report(std::string(op) + ": " + problem.what());
    } catch (...) {
    }
  } catch (...) {
  }
  return otherwise;
}

// Attributes as TensorRT passes them, pointing into an op.
std::vector<nvinfer1::PluginField> fields_of(Op& op);

// Sets the attributes that are given and checks them all. Throws Problem.
void configure(Op& op, const nvinfer1::PluginFieldCollection* fields);

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // The op is configured.
  explicit Plugin(std::unique_ptr<Op> op);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return op_->name(); }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  std::int32_t getNbOutputs() const noexcept override { return static_cast<std::int32_t>(outputs_.size()); }
  const char* getTimingCacheID() noexcept override { return identity_.c_str(); }
  std::int32_t getOutputDataTypes(nvinfer1::DataType* types, std::int32_t outputs, const nvinfer1::DataType* input_types,
      std::int32_t inputs) const noexcept override;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* input_shapes, std::int32_t inputs,
      const nvinfer1::DimsExprs* shape_inputs, std::int32_t shape_input_count, nvinfer1::DimsExprs* output_shapes,
      std::int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
      std::int32_t inputs, std::int32_t outputs) noexcept override;
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* input_tensors, std::int32_t inputs,
      const nvinfer1::DynamicPluginTensorDesc* output_tensors, std::int32_t outputs) noexcept override;
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* input_tensors, std::int32_t inputs,
      const nvinfer1::DynamicPluginTensorDesc* output_tensors, std::int32_t outputs) const noexcept override;

  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* input_tensors, std::int32_t inputs,
      const nvinfer1::PluginTensorDesc* output_tensors, std::int32_t outputs) noexcept override;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_tensors, const nvinfer1::PluginTensorDesc* output_tensors,
      const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &serialised_; }

 private:
  struct Sizes {
    std::int64_t batch = -1, frames = -1;
  };

  void require_counts(std::int32_t inputs, std::int32_t outputs) const;
  // Takes sizes from one input; -1 stands for any. Throws Problem where it does not fit the others.
  void measure(const Tensor& tensor, const nvinfer1::Dims& dims, Sizes& sizes) const;
  // Returns the sizes on which all inputs agree. `dims(i)` is the shape of input i.
  template <class Dims>
  Sizes agreed(Dims dims) const {
    Sizes sizes;
    for (std::size_t i = 0; i < inputs_.size(); ++i) measure(inputs_[i], dims(i), sizes);
    return sizes;
  }

  std::unique_ptr<Op> op_;
  std::vector<Tensor> inputs_, outputs_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection serialised_{};
  std::string identity_;
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(MakeOp make);

  const char* getPluginName() const noexcept override { return op_->name(); }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
      nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  MakeOp make_;
  std::unique_ptr<Op> op_;  // At its defaults.
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection names_{};
};

}  // namespace autovoice::tensorrt
