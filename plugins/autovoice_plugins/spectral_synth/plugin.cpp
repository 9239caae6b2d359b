// SpectralSynth to TensorRT.
#include "../tensorrt/op.h"

namespace autovoice::tensorrt {
namespace {

class SpectralSynth final : public Op {
 public:
  std::unique_ptr<Op> clone() const override { return std::make_unique<SpectralSynth>(*this); }
  const char* name() const override { return "SpectralSynth"; }

  std::vector<Attribute> attributes() override {
    return {{"sample_rate", &options_.sample_rate}, {"hop", &options_.hop}, {"fft_size", &options_.fft_size},
        {"bands", &options_.bands}};
  }

  void validate() override { require(autovoice_spectral_synth_check(&options_)); }
  std::int32_t hop() const override { return options_.hop; }

  std::vector<Tensor> inputs() const override {
    const Extent bands = fixed(options_.bands);
    return {{Tensor::kFloatOrHalf, "EXCITATION", {kBatch, kSamples}},
        {Tensor::kFloatOrHalf, "NOISE", {kBatch, kSamples}},
        {Tensor::kFloatOrHalf, "HARMONIC_FILTER", {kBatch, kFrames, bands}},
        {Tensor::kFloatOrHalf, "NOISE_FILTER", {kBatch, kFrames, bands}},
        {Tensor::kFloat, "STATE_IN", {kBatch, state()}}};
  }

  std::vector<Tensor> outputs() const override {
    return {{Tensor::kFloatOrHalf, "AUDIO", {kBatch, kSamples}, 0}, {Tensor::kFloat, "STATE_OUT", {kBatch, state()}}};
  }

  std::size_t workspace(std::int64_t batch, std::int64_t frames) const override {
    return autovoice_spectral_synth_workspace(&options_, batch, frames);
  }

  std::int32_t enqueue(std::int64_t batch, std::int64_t frames, const autovoice_samples* inputs,
      const autovoice_samples* outputs, void* workspace, autovoice_stream stream) const override {
    return autovoice_spectral_synth(&options_, batch, frames, inputs[0], inputs[1], inputs[2], inputs[3],
        static_cast<const float*>(inputs[4].data), outputs[0], static_cast<float*>(outputs[1].data), workspace, stream);
  }

 private:
  Extent state() const { return fixed(2 * options_.bands + options_.fft_size - options_.hop); }

  autovoice_spectral_synth_options options_{24000, 240, 960, 80};
};

}  // namespace

std::unique_ptr<Op> make_spectral_synth() { return std::make_unique<SpectralSynth>(); }

}  // namespace autovoice::tensorrt
