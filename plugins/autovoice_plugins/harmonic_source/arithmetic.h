// HarmonicSource, one frame and one sample at a time; `reference.py` says what it computes.
#pragma once

#include "../device/portable.h"

namespace autovoice::harmonic_source {

constexpr double kPhaseGrid = 16777216.0;
constexpr float kSmallestPhase = 1e-9f;
constexpr float kSineAmplitude = 0.1f;
constexpr float kVoicedNoise = 0.003f;
constexpr float kUnvoicedNoise = 0.1f / 3.0f;

// The pitch of a frame at its first sample and past its last, Hz.
struct Glide {
  float start, end;
};

// An unvoiced end takes the other end's pitch; "sine" holds its own.
__host__ __device__ __forceinline__ Glide glide(float before, float after, bool sine) {
  if (sine) return {after, after};
  return {before > 0.0f ? before : after, after > 0.0f ? after : before};
}

// Cycles in a frame, a whole multiple of 1 / kPhaseGrid: sums of these in float64 are exact in any order.
__host__ __device__ __forceinline__ double advance(Glide pitch, int sample_rate, int hop) {
  const double rate = static_cast<double>(hop) / (2.0 * sample_rate);
  const double sum = static_cast<double>(pitch.start) + static_cast<double>(pitch.end);
  return rint(sum * rate * kPhaseGrid) * (1.0 / kPhaseGrid);
}

// The phase after `cycles` more, wrapped to [0, 1).
__host__ __device__ __forceinline__ float wrapped(float phase, double cycles) {
  const double total = static_cast<double>(phase) + cycles;
  return static_cast<float>(total - floor(total));
}

// What the samples of a frame have in common.
struct Frame {
  float phase, start, slope;  // Cycles, Hz, Hz per frame.
};

// Wrapped to the nearest pulse, the sum with the phase inside the frame is almost exact where the pulse is steep.
__host__ __device__ __forceinline__ Frame frame(float phase, Glide pitch) {
  return {phase - nearest(phase), pitch.start, pitch.end - pitch.start};
}

// Constants of a clock.
struct Clock {
  float period, curve, share, half_rate, power;
};

inline Clock clock(int sample_rate, int hop) {
  return {static_cast<float>(1.0 / sample_rate), static_cast<float>(0.5 / (static_cast<double>(hop) * sample_rate)),
      static_cast<float>(1.0 / hop), static_cast<float>(0.5 * sample_rate), static_cast<float>(4.0 / sample_rate)};
}

// Sample `step` of a frame: all cosines below Nyquist in closed form.
__host__ __device__ __forceinline__ float pulse(const Frame& frame, const Clock& clock, int step) {
  const float n = static_cast<float>(step);
  const float pitch = frame.start + frame.slope * (n * clock.share);
  float phase = frame.phase + frame.start * (n * clock.period) + frame.slope * (n * n * clock.curve);
  phase -= nearest(phase);
  phase = fabsf(phase) < kSmallestPhase ? kSmallestPhase : phase;
  const float harmonics = quotient(clock.half_rate, pitch);
  const float top = floorf(harmonics);
  float turn = top * phase;
  turn -= nearest(turn);
  const Complex highest = unit(turn), half = unit(0.5f * phase);
  const float kernel = 0.5f * (quotient(highest.im * half.re, half.im) - 1.0f);
  const float sum = kernel + (harmonics - top - 0.5f) * highest.re;
  // sqrt(2 / harmonics), in another form.
  return pitch > 0.0f ? root(pitch * clock.power) * sum : 0.0f;
}

// Sample `step` of a frame: the source of the neural source-filter model.
__host__ __device__ __forceinline__ float sine(const Frame& frame, const Clock& clock, int step, float noise) {
  float phase = frame.phase + frame.start * (static_cast<float>(step + 1) * clock.period);
  phase -= nearest(phase);
  const bool voiced = frame.start > 0.0f;
  return (voiced ? kSineAmplitude * unit(phase).im : 0.0f) + (voiced ? kVoicedNoise : kUnvoicedNoise) * noise;
}

}  // namespace autovoice::harmonic_source
