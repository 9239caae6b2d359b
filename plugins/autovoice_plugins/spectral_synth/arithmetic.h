// SpectralSynth, one bin and one sample at a time; `reference.py` says what it computes.
#pragma once

#include "../device/portable.h"

namespace autovoice::spectral_synth {

constexpr float kFloor = -16.0f;

// Where a bin lies between two points of an envelope.
struct Place {
  int band;
  float weight;  // Of band + 1.
};

// In double precision: the bands are narrow at the top, and the magnitude is an exponential.
__host__ __device__ __forceinline__ Place place(int bin, int sample_rate, int fft_size, int bands) {
  const double hz = static_cast<double>(bin) * sample_rate / fft_size;
  const double position = log1p(hz / 700.0) / log1p(sample_rate / 1400.0) * (bands - 1);
  const int band = position < bands - 2 ? static_cast<int>(position) : bands - 2;
  const double weight = position - band;
  return {band, static_cast<float>(weight < 1.0 ? weight : 1.0)};
}

// The rising half of a Hann window.
__host__ __device__ __forceinline__ float fade_in(int step, int hop) {
  const double root = sin(1.57079632679489661923 * (step + 0.5) / hop);
  return static_cast<float>(root * root);
}

__host__ __device__ __forceinline__ float above_floor(float log_magnitude) {
  // As the reference has it, NaN stays NaN.
  return log_magnitude < kFloor ? 0.0f : log_magnitude - kFloor;
}

__host__ __device__ __forceinline__ float interpolated(const float* above, Place place) {
  return above[place.band] + place.weight * (above[place.band + 1] - above[place.band]);
}

__host__ __device__ __forceinline__ Complex response(float above, float phase_turns) {
  return expf(above + kFloor) * unit(phase_turns - nearest(phase_turns));
}

// The cepstrum of two real envelopes at once, made odd: its DFT is i times the minimum phase of each. What is
// lost is the half that the phase of a folded cepstrum does not depend on.
__host__ __device__ __forceinline__ Complex odd_cepstrum(Complex transformed, int index, int size) {
  if (index == 0 || 2 * index == size) return {0.0f, 0.0f};
  // Per bin and in turns.
  const float scale = (2 * index < size ? 0.15915494309189535f : -0.15915494309189535f) / static_cast<float>(size);
  return scale * transformed;
}

// A bin of the filtered block, from the DFT of (rising + i falling) at the bin and at its mirror image.
__host__ __device__ __forceinline__ Complex filtered(Complex here, Complex mirror, Complex rising, Complex falling) {
  const Complex other = conjugate(mirror);
  const Complex sum = 0.5f * (here + other), difference = 0.5f * (here - other);
  return sum * rising + Complex{difference.im, -difference.re} * falling;
}

// A bin of the half-size inverse DFT of a real signal: bins k and half - k of its spectrum in, conjugated and
// scaled, so that a forward DFT gives the conjugate of (even + i odd) samples.
__host__ __device__ __forceinline__ Complex packed_bin(Complex here, Complex mirror, Complex root, int half) {
  const Complex other = conjugate(mirror);
  const Complex even = here + other, odd = (here - other) * conjugate(root);
  return (0.5f / static_cast<float>(half)) * Complex{even.re - odd.im, -(even.im + odd.re)};
}

}  // namespace autovoice::spectral_synth
