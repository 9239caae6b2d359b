// What kernels and their arithmetic share, for nvcc and for a C++ compiler alone.
#pragma once

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define AUTOVOICE_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "host_cuda.h"
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../kernels.h"

namespace autovoice {

struct alignas(8) Complex {
  float re, im;
};

__host__ __device__ __forceinline__ Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
__host__ __device__ __forceinline__ Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
__host__ __device__ __forceinline__ Complex operator*(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
__host__ __device__ __forceinline__ Complex operator*(float a, Complex b) { return {a * b.re, a * b.im}; }
__host__ __device__ __forceinline__ Complex conjugate(Complex a) { return {a.re, -a.im}; }

// The nearest whole number, for |x| < 2^22: two additions, where rintf goes through a slower unit.
__host__ __device__ __forceinline__ float nearest(float x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

// Cosine and sine of an angle in turns, |turns| < 2^20, to about 1e-7: the polynomials of Cephes.
__host__ __device__ __forceinline__ Complex unit(float turns) {
  const float quarter = nearest(4.0f * turns);
  const float angle = (turns - 0.25f * quarter) * 6.28318530718f;
  const float square = angle * angle;
  const float sine =
      angle + angle * square * (-1.6666654611e-1f + square * (8.3321608736e-3f + square * -1.9515295891e-4f));
  const float cosine =
      1.0f - 0.5f * square +
      square * square * (4.166664568298827e-2f + square * (-1.388731625493765e-3f + square * 2.443315711809948e-5f));
  const int turned = static_cast<int>(quarter) & 3;
  const float re = (turned & 1) != 0 ? sine : cosine;
  const float im = (turned & 1) != 0 ? cosine : sine;
  return {turned == 1 || turned == 2 ? -re : re, turned >= 2 ? -im : im};
}

// A quotient to about two units in the last place.
__host__ __device__ __forceinline__ float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

// The square root of x > 0 to about two units in the last place; NaN for zero.
__host__ __device__ __forceinline__ float root(float x) {
#if defined(__CUDA_ARCH__)
  return x * rsqrtf(x);
#else
  return x * (1.0f / std::sqrt(x));
#endif
}

__host__ __device__ __forceinline__ float from_half(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(bits));
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  std::uint32_t word;
  if (magnitude >= 0x7c00u) {
    word = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
  } else if (magnitude >= 0x400u) {
    word = sign | ((magnitude << 13) + 0x38000000u);
  } else {
    const float small = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&word, &small, 4);
    word |= sign;
  }
  float value;
  std::memcpy(&value, &word, 4);
  return value;
#endif
}

// Rounds to the nearest, ties to even.
__host__ __device__ __forceinline__ std::uint16_t to_half(float value) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(value));
#else
  std::uint32_t word;
  std::memcpy(&word, &value, 4);
  const std::uint32_t sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    const float steps = std::nearbyint(std::fabs(value) * 16777216.0f);
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(steps));
  }
  const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | (rounded - 0x38000000u) >> 13);
#endif
}

__host__ __device__ __forceinline__ float load(const autovoice_samples& samples, std::int64_t index) {
  return samples.type == AUTOVOICE_FLOAT16 ? from_half(static_cast<const std::uint16_t*>(samples.data)[index])
                                           : static_cast<const float*>(samples.data)[index];
}

__host__ __device__ __forceinline__ void store(const autovoice_samples& samples, std::int64_t index, float value) {
  if (samples.type == AUTOVOICE_FLOAT16) {
    static_cast<std::uint16_t*>(samples.data)[index] = to_half(value);
  } else {
    static_cast<float*>(samples.data)[index] = value;
  }
}

}  // namespace autovoice
