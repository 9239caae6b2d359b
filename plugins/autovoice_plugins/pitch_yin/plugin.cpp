// PitchYin to TensorRT.
#include "../tensorrt/op.h"

namespace autovoice::tensorrt {
namespace {

class PitchYin final : public Op {
 public:
  std::unique_ptr<Op> clone() const override { return std::make_unique<PitchYin>(*this); }
  const char* name() const override { return "PitchYin"; }

  std::vector<Attribute> attributes() override {
    return {{"sample_rate", &options_.sample_rate}, {"hop", &options_.hop}, {"f0_min", &options_.f0_min},
        {"f0_max", &options_.f0_max}, {"threshold", &options_.threshold},
        {"voicing_threshold", &options_.voicing_threshold}};
  }

  void validate() override { require(autovoice_pitch_yin_check(&options_)); }
  std::int32_t hop() const override { return options_.hop; }

  std::vector<Tensor> inputs() const override {
    return {{Tensor::kFloatOrHalf, "AUDIO", {kBatch, kSamples}}, {Tensor::kFloat, "STATE_IN", {kBatch, state()}}};
  }

  std::vector<Tensor> outputs() const override {
    return {{Tensor::kFloat, "F0", {kBatch, kFrames}}, {Tensor::kFloat, "PERIODICITY", {kBatch, kFrames}},
        {Tensor::kFloat, "STATE_OUT", {kBatch, state()}}};
  }

  std::size_t workspace(std::int64_t batch, std::int64_t frames) const override {
    return autovoice_pitch_yin_workspace(&options_, batch, frames);
  }

  std::int32_t enqueue(std::int64_t batch, std::int64_t frames, const autovoice_samples* inputs,
      const autovoice_samples* outputs, void* workspace, autovoice_stream stream) const override {
    return autovoice_pitch_yin(&options_, batch, frames, inputs[0], static_cast<const float*>(inputs[1].data),
        static_cast<float*>(outputs[0].data), static_cast<float*>(outputs[1].data),
        static_cast<float*>(outputs[2].data), workspace, stream);
  }

 private:
  Extent state() const { return fixed(6 * options_.hop); }

  autovoice_pitch_yin_options options_{24000, 240, 50.0f, 1100.0f, 0.05f, 0.6f};
};

}  // namespace

std::unique_ptr<Op> make_pitch_yin() { return std::make_unique<PitchYin>(); }

}  // namespace autovoice::tensorrt
