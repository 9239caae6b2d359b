// PitchYin, one sample, bin and lag at a time; `reference.py` says what it computes.
#pragma once

#include "../device/portable.h"

namespace autovoice::pitch_yin {

constexpr int kBlocksOfState = 6;
constexpr double kLowpassSeconds = 1.25e-3;
constexpr double kOctaveCost = 0.01;
constexpr float kRelativeNoise = 1e-5f;
constexpr float kAbsoluteNoise = 1e-7f;
constexpr float kNoDip = 100.0f;

// What a launch searches and with which prefilter.
struct Search {
  int low, high;     // Lags.
  int length, span;  // Samples of the smoothing and of the moving average.
  float rate, f0_min, f0_max, threshold, voicing_threshold;
};

// A tap of the smoothing, the whole of which is 1.
__host__ __device__ __forceinline__ float smoothing(int tap, int length) {
  const double root = sin(3.14159265358979323846 * (tap + 0.5) / length);
  return static_cast<float>(length > 1 ? 2.0 * root * root / length : 1.0);
}

__host__ __device__ __forceinline__ float octave_cost(int lag, int low) {
  return static_cast<float>(kOctaveCost * log2(static_cast<double>(lag) / low));
}

// The sum of the `span` values that end with `index` of a block, from running sums [hop + 1] of it and the one before.
__host__ __device__ __forceinline__ float moving_sum(const float* sums, const float* before, int index, int span, int hop) {
  const int from = index + 1 - span;
  return from >= 0 ? sums[index + 1] - sums[from] : sums[index + 1] + (before[hop] - before[hop + from]);
}

// About 1 / sqrt(energy), a power of two: two blocks of a signal that share a transform leave rounding errors in
// each other, which would be large in the fainter one.
__host__ __device__ __forceinline__ float level(float energy) {
  int exponent = 0;
  frexpf(energy, &exponent);
  const int limited = exponent < -80 ? -80 : (exponent > 80 ? 80 : exponent);
  return ldexpf(1.0f, (energy > 0.0f ? -limited : 80) / 2);
}

// A bin of a block's correlation with itself and the two before; `turn` moves one block by a hop.
__host__ __device__ __forceinline__ Complex correlated(Complex newest, Complex one_before, Complex two_before, Complex turn) {
  return newest * conjugate(newest + turn * (one_before + turn * two_before));
}

// The energy that a block meets at a lag, from running sums of squares [hop + 1], newest first.
__host__ __device__ __forceinline__ float lagged_energy(
    const float* newest, const float* one_before, const float* two_before, int lag, int hop) {
  const float *near = newest, *far = one_before;
  if (lag > hop) {
    lag -= hop;
    near = one_before;
    far = two_before;
  }
  return near[hop - lag] + (far[hop] - far[hop - lag]);
}

// The sum over a block of (y[m] - y[m - lag])^2; NaN stays NaN.
__host__ __device__ __forceinline__ float difference(float energy, float lagged, float correlation) {
  const float value = energy + lagged - 2.0f * correlation;
  return value < 0.0f ? 0.0f : value;
}

// The mean difference over a window of four blocks, newest first, centred on the same instant at every lag.
__host__ __device__ __forceinline__ float window(float d0, float d1, float d2, float d3, int lag, int hop) {
  const float offset = static_cast<float>(lag - hop) / static_cast<float>(hop);
  const float outer = offset > 0.0f ? offset * d0 : -offset * d3;
  return quotient(d1 + d2 + outer, static_cast<float>(hop) * (2.0f + fabsf(offset)));
}

__host__ __device__ __forceinline__ float clipped(float value, float low, float high) {
  return value < low ? low : (value > high ? high : value);
}

struct Pitch {
  float f0, periodicity;
};

// The pitch of a picked dip; past the longest lag `right` is `left`.
__host__ __device__ __forceinline__ Pitch refined(const Search& search, int lag, float left, float depth, float right) {
  const float curvature = left - 2.0f * depth + right;
  const float offset = curvature > 0.0f ? clipped(0.5f * (left - right) / curvature, -0.5f, 0.5f) : 0.0f;
  const float f0 = clipped(search.rate / (static_cast<float>(lag) + offset), search.f0_min, search.f0_max);
  const float periodicity = clipped(1.0f - depth, 0.0f, 1.0f);
  return {periodicity >= search.voicing_threshold ? f0 : 0.0f, periodicity};
}

}  // namespace autovoice::pitch_yin
