// What an op's plugin says of itself. Everything that TensorRT asks of every plugin is in plugin.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "../kernels.h"

namespace autovoice::tensorrt {

// Something wrong that a user can put right: the message says what and how.
struct Problem : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The size of an axis: a name that all tensors agree on, or a number.
struct Extent {
  enum Kind { kBatch, kFrames, kSamples, kNumber } kind;
  std::int32_t number = 0;
};

constexpr Extent kBatch{Extent::kBatch}, kFrames{Extent::kFrames}, kSamples{Extent::kSamples};
constexpr Extent fixed(std::int32_t number) { return {Extent::kNumber, number}; }

struct Tensor {
  enum Type { kFloat, kFloatOrHalf } type;
  const char* name;
  std::vector<Extent> shape;
  // Of an output that may be half: the input whose type it takes, or -1 for float.
  std::int32_t like = -1;
};

// An attribute of the ONNX node, and where the op keeps it: at its default until it is set.
struct Attribute {
  const char* name;
  std::variant<std::int32_t*, float*, std::string*> value;
};

class Op {
 public:
  virtual ~Op() = default;
  virtual std::unique_ptr<Op> clone() const = 0;

  virtual const char* name() const = 0;
  virtual std::vector<Attribute> attributes() = 0;
  // Called once the attributes are set. Throws Problem unless they can be served.
  virtual void validate() = 0;

  // Meaningful once the attributes are valid.
  virtual std::int32_t hop() const = 0;
  virtual std::vector<Tensor> inputs() const = 0;
  virtual std::vector<Tensor> outputs() const = 0;
  virtual std::size_t workspace(std::int64_t batch, std::int64_t frames) const = 0;
  // As the functions of kernels.h: returns 0, or autovoice_last_error() has the reason.
  virtual std::int32_t enqueue(std::int64_t batch, std::int64_t frames, const autovoice_samples* inputs,
      const autovoice_samples* outputs, void* workspace, autovoice_stream stream) const = 0;

 protected:
  Op() = default;
  Op(const Op&) = default;

  static void require(std::int32_t status) {
    if (status != 0) throw Problem(autovoice_last_error());
  }
};

using MakeOp = std::unique_ptr<Op> (*)();

std::unique_ptr<Op> make_pitch_yin();
std::unique_ptr<Op> make_harmonic_source();
std::unique_ptr<Op> make_spectral_synth();

}  // namespace autovoice::tensorrt
