// HarmonicSource to TensorRT.
#include "../tensorrt/op.h"

namespace autovoice::tensorrt {
namespace {

class HarmonicSource final : public Op {
 public:
  std::unique_ptr<Op> clone() const override { return std::make_unique<HarmonicSource>(*this); }
  const char* name() const override { return "HarmonicSource"; }

  std::vector<Attribute> attributes() override {
    return {{"sample_rate", &options_.sample_rate}, {"hop", &options_.hop}, {"waveform", &waveform_}};
  }

  void validate() override {
    if (waveform_ != "pulse" && waveform_ != "sine") {
      throw Problem("waveform is \"" + waveform_ + "\"; use one of pulse, sine.");
    }
    options_.waveform = waveform_ == "sine" ? AUTOVOICE_SINE : AUTOVOICE_PULSE;
    require(autovoice_harmonic_source_check(&options_));
  }

  std::int32_t hop() const override { return options_.hop; }

  std::vector<Tensor> inputs() const override {
    std::vector<Tensor> tensors{
        {Tensor::kFloat, "F0", {kBatch, kFrames}}, {Tensor::kFloat, "STATE_IN", {kBatch, fixed(2)}}};
    if (is_sine()) tensors.push_back({Tensor::kFloatOrHalf, "NOISE", {kBatch, kSamples}});
    return tensors;
  }

  std::vector<Tensor> outputs() const override {
    return {{Tensor::kFloatOrHalf, "EXCITATION", {kBatch, kSamples}, is_sine() ? 2 : -1},
        {Tensor::kFloat, "STATE_OUT", {kBatch, fixed(2)}}};
  }

  std::size_t workspace(std::int64_t batch, std::int64_t frames) const override {
    return autovoice_harmonic_source_workspace(&options_, batch, frames);
  }

  std::int32_t enqueue(std::int64_t batch, std::int64_t frames, const autovoice_samples* inputs,
      const autovoice_samples* outputs, void* workspace, autovoice_stream stream) const override {
    return autovoice_harmonic_source(&options_, batch, frames, static_cast<const float*>(inputs[0].data),
        static_cast<const float*>(inputs[1].data), is_sine() ? inputs[2] : autovoice_samples{}, outputs[0],
        static_cast<float*>(outputs[1].data), workspace, stream);
  }

 private:
  bool is_sine() const { return options_.waveform == AUTOVOICE_SINE; }

  std::string waveform_ = "pulse";
  autovoice_harmonic_source_options options_{24000, 240, AUTOVOICE_PULSE};
};

}  // namespace

std::unique_ptr<Op> make_harmonic_source() { return std::make_unique<HarmonicSource>(); }

}  // namespace autovoice::tensorrt
