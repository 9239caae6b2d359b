// Two kernels: one block per sequence sums the phase over the frames, then every thread makes four samples.
#include "../device/launch.h"
#include "arithmetic.h"

namespace autovoice::harmonic_source {
namespace {

constexpr int kThreads = 256;
constexpr int kFramesPerThread = 4;
constexpr int kGroup = 16;
constexpr int kSamplesPerThread = 4;

struct Work {
  const float *f0, *state_in;
  autovoice_samples noise, excitation;
  float *state_out, *phases;  // phases: at the start of each frame, [B, F].
  Clock clock;
  int frames, hop, sample_rate;
  bool sine, vectors;
};

__device__ __forceinline__ Glide glide_of(const Work& work, int row, int frame) {
  const float* f0 = work.f0 + static_cast<std::int64_t>(row) * work.frames;
  const float before = frame > 0 ? f0[frame - 1] : work.state_in[2 * row];
  return glide(before, f0[frame], work.sine);
}

// One block per sequence, a thousand frames at a time: threads sum their own frames, groups sum their threads.
__global__ void __launch_bounds__(kThreads) phase_kernel(Work work) {
  AUTOVOICE_SHARED(memory);
  double* const sums = reinterpret_cast<double*>(memory);
  double* const groups = sums + kThreads;
  const int thread = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x);
  const float start = work.state_in[2 * row + 1];
  float* const phases = work.phases + static_cast<std::int64_t>(row) * work.frames;

  double carried = 0.0;
  for (int tile = 0; tile < work.frames; tile += kThreads * kFramesPerThread) {
    double advances[kFramesPerThread], sum = 0.0;
    const int first = tile + thread * kFramesPerThread;
    for (int i = 0; i < kFramesPerThread; ++i) {
      const bool inside = first + i < work.frames;
      advances[i] = inside ? advance(glide_of(work, row, first + i), work.sample_rate, work.hop) : 0.0;
      sum += advances[i];
    }
    sums[thread] = sum;
    __syncthreads();
    if (thread < kThreads / kGroup) {
      double total = 0.0;
      for (int i = 0; i < kGroup; ++i) total += sums[thread * kGroup + i];
      groups[thread] = total;
    }
    __syncthreads();
    double before = carried;
    for (int group = 0; group < thread / kGroup; ++group) before += groups[group];
    for (int i = thread / kGroup * kGroup; i < thread; ++i) before += sums[i];
    for (int i = 0; i < kFramesPerThread; ++i) {
      if (first + i >= work.frames) break;
      phases[first + i] = first + i == 0 ? start : wrapped(start, before);
      before += advances[i];
      if (first + i == work.frames - 1) {
        work.state_out[2 * row] = work.sine ? 0.0f : work.f0[static_cast<std::int64_t>(row) * work.frames + first + i];
        work.state_out[2 * row + 1] = wrapped(start, before);
      }
    }
    for (int group = 0; group < kThreads / kGroup; ++group) carried += groups[group];
    __syncthreads();
  }
}

__device__ __forceinline__ float sample(const Work& work, const Frame& frame, int step, std::int64_t index) {
  return work.sine ? sine(frame, work.clock, step, load(work.noise, index)) : pulse(frame, work.clock, step);
}

__global__ void __launch_bounds__(kThreads) sample_kernel(Work work) {
  const int row = static_cast<int>(blockIdx.y);
  const std::int64_t samples = static_cast<std::int64_t>(work.frames) * work.hop, offset = row * samples;
  const std::int64_t first =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * kSamplesPerThread;
  if (first >= samples) return;
  int index = static_cast<int>(first / work.hop), step = static_cast<int>(first % work.hop);
  const float* const phases = work.phases + static_cast<std::int64_t>(row) * work.frames;
  Frame current = frame(phases[index], glide_of(work, row, index));

  if (work.vectors) {
    // A hop that four divides: the four samples are of one frame.
    float values[kSamplesPerThread];
    for (int i = 0; i < kSamplesPerThread; ++i) values[i] = sample(work, current, step + i, offset + first + i);
    if (work.excitation.type == AUTOVOICE_FLOAT16) {
      struct alignas(8) Halves {
        std::uint16_t value[kSamplesPerThread];
      } halves;
      for (int i = 0; i < kSamplesPerThread; ++i) halves.value[i] = to_half(values[i]);
      *reinterpret_cast<Halves*>(static_cast<std::uint16_t*>(work.excitation.data) + offset + first) = halves;
    } else {
      struct alignas(16) Floats {
        float value[kSamplesPerThread];
      } floats;
      for (int i = 0; i < kSamplesPerThread; ++i) floats.value[i] = values[i];
      *reinterpret_cast<Floats*>(static_cast<float*>(work.excitation.data) + offset + first) = floats;
    }
    return;
  }
  for (int i = 0; i < kSamplesPerThread && first + i < samples; ++i, ++step) {
    if (step == work.hop) {
      step = 0;
      ++index;
      current = frame(phases[index], glide_of(work, row, index));
    }
    store(work.excitation, offset + first + i, sample(work, current, step, offset + first + i));
  }
}

}  // namespace
}  // namespace autovoice::harmonic_source

using namespace autovoice;

std::int32_t autovoice_harmonic_source_check(const autovoice_harmonic_source_options* options) {
  if (options->sample_rate < 1) return refuse("sample_rate=%d Hz is no rate; use 1 or more.", options->sample_rate);
  if (options->hop < 1) return refuse("hop=%d samples is no block; use 1 or more.", options->hop);
  if (options->waveform != AUTOVOICE_PULSE && options->waveform != AUTOVOICE_SINE) {
    return refuse("waveform=%d is unknown; use AUTOVOICE_PULSE or AUTOVOICE_SINE.", options->waveform);
  }
  return 0;
}

std::size_t autovoice_harmonic_source_workspace(
    const autovoice_harmonic_source_options*, std::int64_t batch, std::int64_t frames) {
  return aligned(static_cast<std::size_t>(batch * frames) * sizeof(float));
}

std::int32_t autovoice_harmonic_source(const autovoice_harmonic_source_options* options, std::int64_t batch,
    std::int64_t frames, const float* f0, const float* state_in, autovoice_samples noise, autovoice_samples excitation,
    float* state_out, void* workspace, autovoice_stream stream) {
  using namespace harmonic_source;
  const bool is_sine = options->waveform == AUTOVOICE_SINE;
  if (autovoice_harmonic_source_check(options) != 0 || check_sizes(batch, frames, options->hop) != 0 ||
      check_samples("excitation", excitation) != 0 || (is_sine && check_samples("noise", noise) != 0)) {
    return 1;
  }
  const bool vectors =
      options->hop % kSamplesPerThread == 0 && reinterpret_cast<std::uintptr_t>(excitation.data) % 16 == 0;
  const Work work{f0, state_in, noise, excitation, state_out, static_cast<float*>(workspace),
      clock(options->sample_rate, options->hop), static_cast<int>(frames), options->hop, options->sample_rate, is_sine,
      vectors};
  const std::size_t shared = (kThreads + kThreads / kGroup) * sizeof(double);
  if (launch(phase_kernel, dim3{static_cast<unsigned>(batch)}, kThreads, shared, stream, work) != 0) return 1;
  const std::int64_t per_block = kThreads * kSamplesPerThread;
  const dim3 grid{static_cast<unsigned>((frames * options->hop + per_block - 1) / per_block),
      static_cast<unsigned>(batch), 1};
  return launch(sample_kernel, grid, kThreads, 0, stream, work);
}
