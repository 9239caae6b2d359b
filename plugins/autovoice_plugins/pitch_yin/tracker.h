// What a block of threads does: it tracks a run of frames in shared memory, two blocks of audio at a time: prefilter,
// running energies, one DFT for both, products with the spectra of the blocks before, one inverse for both
// correlations. Each half of the threads then makes one frame of it. Runs begin five blocks early.
#pragma once

#include "../device/fft.h"
#include "arithmetic.h"

namespace autovoice::pitch_yin {

constexpr int kThreads = 128;
constexpr int kHalf = kThreads / 2;
constexpr int kGroup = 8;
constexpr int kOutputs = 4;

// Constants, made in the workspace before every launch.
struct Tables {
  Complex* roots;  // [size]
  float* taps;     // [length]
  float* cost;     // [2 hop + 1]
};

template <class Plan>
struct Work {
  autovoice_samples audio;
  const float* state_in;
  float *f0, *periodicity, *state_out;
  Tables tables;
  unsigned char* scratch;  // Per block where shared memory is too small, else NULL.
  std::size_t block_bytes;
  Plan plan;
  Search search;
  int frames, hop, run;
};

// What a block keeps in shared memory. Rings are indexed by the number of a block of audio.
struct Scratch {
  int hop, bins;
  Complex *ping, *pong, *roots;  // [size] each
  Complex* spectra;              // [2, size / 2 + 1], a ring
  float* differences;            // [5, 2 hop + 1], a ring
  float* squares;                // [4, hop + 1], a ring of running sums
  float* sums;                   // [3, hop + 1], running sums of the smoothed signal: block before, pair
  float* audio;                  // [3, hop] and some to spare: block before, pair
  float* taps;                   // [length]
  float* energies;               // [8], a ring
  float* partial;                // [2, kHalf + kGroup]

  __host__ __device__ static std::size_t bytes(int size, int hop, int length) {
    const std::size_t floats = 5 * (2 * hop + 1) + 7 * (hop + 1) + 3 * hop + kOutputs + length + 8 + 2 * (kHalf + kGroup);
    return (3 * size + 2 * (size / 2 + 1)) * sizeof(Complex) + floats * sizeof(float);
  }

  __device__ __forceinline__ Scratch(unsigned char* memory, int size, int hop_samples, int length)
      : hop(hop_samples),
        bins(size / 2 + 1),
        ping(reinterpret_cast<Complex*>(memory)),
        pong(ping + size),
        roots(pong + size),
        spectra(roots + size),
        differences(reinterpret_cast<float*>(spectra + 2 * bins)),
        squares(differences + 5 * (2 * hop + 1)),
        sums(squares + 4 * (hop + 1)),
        audio(sums + 3 * (hop + 1)),
        taps(audio + 3 * hop + kOutputs),
        energies(taps + length),
        partial(energies + 8) {}

  // The smoothed, then the filtered signal of a pair lies where the DFT reads it from.
  __device__ __forceinline__ float* signal() const { return reinterpret_cast<float*>(pong); }
  __device__ __forceinline__ Complex* spectrum(int block) const { return spectra + (block & 1) * bins; }
  __device__ __forceinline__ float* difference(int block) const { return differences + block % 5 * (2 * hop + 1); }
  __device__ __forceinline__ float* square(int block) const { return squares + (block & 3) * (hop + 1); }
  __device__ __forceinline__ float* sum(int which) const { return sums + which * (hop + 1); }
};

// A thread among the half of the block that works on one of two things.
struct HalfLane {
  int number, thread;
  float *partial, *groups;
};

// Running sums in place, of `count` values of each half. Begins after and ends with a barrier.
__device__ __forceinline__ void scan(HalfLane lane, float* values, int count) {
  // An odd stride between threads meets no bank twice.
  const int chunk = ((count + kHalf - 1) / kHalf) | 1;
  const int first = lane.thread * chunk, end = first + chunk < count ? first + chunk : count;
  float total = 0.0f;
  for (int i = first; i < end; ++i) total += values[i];
  lane.partial[lane.thread] = total;
  __syncthreads();
  if (lane.thread < kHalf / kGroup) {
    float group = 0.0f;
    for (int i = 0; i < kGroup; ++i) group += lane.partial[lane.thread * kGroup + i];
    lane.groups[lane.thread] = group;
  }
  __syncthreads();
  float running = 0.0f;
  for (int i = 0; i < lane.thread / kGroup; ++i) running += lane.groups[i];
  for (int i = lane.thread / kGroup * kGroup; i < lane.thread; ++i) running += lane.partial[i];
  for (int i = first; i < end; ++i) {
    running += values[i];
    values[i] = running;
  }
  __syncthreads();
}

// The least value of each half. Ends with a barrier.
__device__ __forceinline__ float least(HalfLane lane, float value) {
  lane.partial[lane.thread] = value;
  __syncthreads();
  if (lane.thread < kHalf / kGroup) {
    float group = lane.partial[lane.thread * kGroup];
    for (int i = 1; i < kGroup; ++i) group = fminf(group, lane.partial[lane.thread * kGroup + i]);
    lane.groups[lane.thread] = group;
  }
  __syncthreads();
  float result = lane.groups[0];
  for (int i = 1; i < kHalf / kGroup; ++i) result = fminf(result, lane.groups[i]);
  __syncthreads();
  return result;
}

// A sample of the state and the audio after it, zero past the end.
template <class W>
__device__ __forceinline__ float past(const W& work, int row, std::int64_t index) {
  const std::int64_t state = kBlocksOfState * work.hop, samples = static_cast<std::int64_t>(work.frames) * work.hop;
  if (index < state) return work.state_in[row * state + index];
  return index < state + samples ? load(work.audio, row * samples + (index - state)) : 0.0f;
}

// Smooths outputs [first, 2 hop) of scratch.audio, which has a block before, four a thread.
template <class W>
__device__ __forceinline__ void smooth(const W& work, const Scratch& scratch, Lane lane) {
  const int hop = work.hop, length = work.search.length;
  for (int i = lane.thread * kOutputs; i < 2 * hop; i += lane.threads * kOutputs) {
    const float* const input = scratch.audio + hop + i;
    float values[kOutputs], sums[kOutputs] = {};
    unrolled<kOutputs>([&](auto o) { values[o] = input[o]; });
    for (int tap = 0;;) {
      const float weight = scratch.taps[tap];
      unrolled<kOutputs>([&](auto o) { sums[o] += weight * values[o]; });
      if (++tap == length) break;
      unrolled<kOutputs - 1>([&](auto o) { values[kOutputs - 1 - o] = values[kOutputs - 2 - o]; });
      values[0] = input[-tap];
    }
    for (int o = 0; o < kOutputs && i + o < 2 * hop; ++o) {
      const int index = i + o, second = index >= hop;
      scratch.signal()[index] = sums[o];
      scratch.sum(1 + second)[index - second * hop + 1] = sums[o];
    }
  }
}

// Takes blocks `block` and the next into scratch: audio, running sums, filtered signal, squares, energies.
template <class W>
__device__ __forceinline__ void take_pair(const W& work, const Scratch& scratch, Lane lane, HalfLane half, int row, int block) {
  const int hop = work.hop;
  const std::int64_t first = static_cast<std::int64_t>(block) * hop;
  for (int i = lane.thread; i < hop; i += lane.threads) {
    scratch.audio[i] = scratch.audio[2 * hop + i];
    scratch.audio[hop + i] = past(work, row, first + i);
    scratch.audio[2 * hop + i] = past(work, row, first + hop + i);
    scratch.sum(0)[i + 1] = scratch.sum(2)[i + 1];
  }
  __syncthreads();
  smooth(work, scratch, lane);
  __syncthreads();
  scan(half, scratch.sum(1 + half.number) + 1, hop);
  const float share = 1.0f / static_cast<float>(work.search.span);
  for (int i = lane.thread; i < 2 * hop; i += lane.threads) {
    const int second = i >= hop, index = i - second * hop;
    const float mean = share * moving_sum(scratch.sum(1 + second), scratch.sum(second), index, work.search.span, hop);
    const float value = scratch.signal()[i] - mean;
    scratch.signal()[i] = value;
    scratch.square(block + second)[index + 1] = value * value;
  }
  __syncthreads();
  float* const squares = scratch.square(block + half.number);
  scan(half, squares + 1, hop);
  if (half.thread == 0) scratch.energies[(block + half.number) & 7] = squares[hop];
}

// Leaves the spectra of the pair and, with `differ`, its differences. Ends with a barrier.
template <class W>
__device__ __forceinline__ void transform_pair(const W& work, const Scratch& scratch, Lane lane, int block, bool differ) {
  const int size = work.plan.size(), hop = work.hop;
  const Roots roots{scratch.roots, size};
  const float energy = scratch.square(block)[hop], next_energy = scratch.square(block + 1)[hop];
  const float level_now = level(energy), level_next = level(next_energy);
  const float unlevel_now = 1.0f / level_now, unlevel_next = 1.0f / level_next;
  const auto pair = [&](int i) {
    return i < hop ? Complex{level_now * scratch.signal()[i], level_next * scratch.signal()[hop + i]} : Complex{0.0f, 0.0f};
  };
  work.plan.transform(roots, lane, scratch.ping, scratch.pong, pair, [&](int i, Complex v) { scratch.ping[i] = v; });
  __syncthreads();
  // What the correlations are multiplied with: a block's level times the least of the three that it meets.
  const float before_level = level(scratch.energies[(block - 1) & 7]);
  const float gain = level_now * fminf(level_now, fminf(before_level, level(scratch.energies[(block - 2) & 7])));
  const float next_gain = level_next * fminf(level_next, fminf(level_now, before_level));
  for (int f = lane.thread; f < scratch.bins; f += lane.threads) {
    const int mirror = f == 0 ? 0 : size - f;
    const Complex here = scratch.ping[f], other = conjugate(scratch.ping[mirror]);
    const Complex first = (0.5f * unlevel_now) * (here + other), rest = (0.5f * unlevel_next) * (here - other);
    const Complex second{rest.im, -rest.re};
    // The pair takes the place of the pair before.
    const Complex earlier = scratch.spectrum(block)[f], before = scratch.spectrum(block + 1)[f];
    scratch.spectrum(block)[f] = first;
    scratch.spectrum(block + 1)[f] = second;
    if (!differ) continue;
    const int angle = size == 3 * hop ? f % 3 * hop : static_cast<int>(static_cast<std::int64_t>(f) * hop % size);
    const Complex turn = conjugate(scratch.roots[angle]);
    const Complex a = gain * correlated(first, before, earlier, turn);
    const Complex b = next_gain * correlated(second, first, before, turn);
    // Both spectra of one inverse, conjugated because it is made of a forward one: conj(a + i b) and its mirror.
    scratch.ping[f] = {a.re - b.im, -(a.im + b.re)};
    if (f != mirror) scratch.ping[mirror] = {a.re + b.im, a.im - b.re};
  }
  __syncthreads();
  if (!differ) return;
  const float scale = 1.0f / (gain * static_cast<float>(size)), next_scale = 1.0f / (next_gain * static_cast<float>(size));
  const auto keep = [&](int lag, Complex v) {
    if (lag > 2 * hop) return;
    const float *const newest = scratch.square(block), *const before = scratch.square(block - 1);
    const float lagged = lagged_energy(newest, before, scratch.square(block - 2), lag, hop);
    const float next_lagged = lagged_energy(scratch.square(block + 1), newest, before, lag, hop);
    scratch.difference(block)[lag] = difference(energy, lagged, v.re * scale);
    scratch.difference(block + 1)[lag] = difference(next_energy, next_lagged, -v.im * next_scale);
  };
  work.plan.transform(roots, lane, scratch.pong, scratch.ping, [&](int i) { return scratch.ping[i]; }, keep);
  __syncthreads();
}

// Each half picks the pitch of the frame whose newest block is `block`. Ends with a barrier.
template <class W>
__device__ __forceinline__ void pick(
    const W& work, const Scratch& scratch, HalfLane lane, int block, float* f0, float* periodicity) {
  const int hop = work.hop, longest = 2 * hop;
  const Search& search = work.search;
  // ratio[lag] and sums[lag - 1], in memory that the transforms have left.
  float* const ratio = reinterpret_cast<float*>(scratch.ping) + lane.number * (longest + 1);
  float* const sums = reinterpret_cast<float*>(scratch.pong) + lane.number * (longest + 1);
  const float *const d0 = scratch.difference(block), *const d1 = scratch.difference(block - 1);
  const float *const d2 = scratch.difference(block - 2), *const d3 = scratch.difference(block - 3);
  float power = 0.0f;
  for (int b = 0; b < 4; ++b) power += scratch.energies[(block - b) & 7];
  const float noise = power * (kRelativeNoise / (4.0f * static_cast<float>(hop))) + kAbsoluteNoise;
  for (int lag = 1 + lane.thread; lag <= longest; lag += kHalf) {
    const float value = window(d0[lag], d1[lag], d2[lag], d3[lag], lag, hop) + noise;
    ratio[lag] = value;
    sums[lag - 1] = value;
  }
  __syncthreads();
  scan(lane, sums, longest);
  for (int lag = 1 + lane.thread; lag <= longest; lag += kHalf) {
    ratio[lag] *= quotient(static_cast<float>(lag), sums[lag - 1]);
  }
  __syncthreads();

  const auto cost_of = [&](int lag) {
    const float here = ratio[lag];
    const bool dip = here < ratio[lag - 1] && (lag == longest || here <= ratio[lag + 1]);
    return dip ? here + work.tables.cost[lag] : kNoDip;
  };
  float cheapest = kNoDip;
  for (int lag = search.low + lane.thread; lag <= search.high; lag += kHalf) cheapest = fminf(cheapest, cost_of(lag));
  const float limit = least(lane, cheapest) + search.threshold;
  // Lags are whole numbers below 2^24.
  float shortest = static_cast<float>(search.high);
  for (int lag = search.high - lane.thread; lag >= search.low; lag -= kHalf) {
    if (cost_of(lag) <= limit) shortest = static_cast<float>(lag);
  }
  const int lag = static_cast<int>(least(lane, shortest));
  if (lane.thread == 0 && f0 != nullptr) {
    const float left = ratio[lag - 1], right = lag < longest ? ratio[lag + 1] : left;
    const Pitch pitch = refined(search, lag, left, ratio[lag], right);
    *f0 = pitch.f0;
    *periodicity = pitch.periodicity;
  }
  __syncthreads();
}

template <class W>
__device__ __forceinline__ void track(const W& work, unsigned char* memory) {
  const int size = work.plan.size(), hop = work.hop, length = work.search.length;
  const int thread = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.y);
  const Lane lane{thread, kThreads};
  const Scratch scratch(memory, size, hop, length);
  float* const partial = scratch.partial + thread / kHalf * (kHalf + kGroup);
  const HalfLane half{thread / kHalf, thread % kHalf, partial, partial + kHalf};

  const int begin = static_cast<int>(blockIdx.x) * work.run;
  const int end = begin + work.run < work.frames ? begin + work.run : work.frames;
  for (int i = thread; i < size; i += kThreads) scratch.roots[i] = work.tables.roots[i];
  for (int i = thread; i < length; i += kThreads) scratch.taps[i] = work.tables.taps[i];
  if (thread < 4) scratch.square(thread)[0] = 0.0f;
  if (thread < 3) scratch.sum(thread)[0] = 0.0f;
  // The block before the first pair. Its first samples lack a past, but no average reaches them.
  for (int i = thread; i < hop; i += kThreads) {
    scratch.audio[i] = 0.0f;
    scratch.audio[hop + i] = 0.0f;
    scratch.audio[2 * hop + i] = past(work, row, static_cast<std::int64_t>(begin) * hop + i);
  }
  if (thread < kOutputs) scratch.audio[3 * hop + thread] = 0.0f;
  __syncthreads();
  smooth(work, scratch, lane);
  __syncthreads();
  scan(half, scratch.sum(1 + half.number) + 1, hop);

  for (int block = begin + 1; block < end + kBlocksOfState; block += 2) {
    take_pair(work, scratch, lane, half, row, block);
    transform_pair(work, scratch, lane, block, block >= begin + 3);
    if (block < begin + kBlocksOfState - 1) continue;
    const int frame = block + half.number - kBlocksOfState;
    const bool wanted = begin <= frame && frame < end;
    const std::int64_t index = static_cast<std::int64_t>(row) * work.frames + frame;
    pick(work, scratch, half, block + half.number, wanted ? work.f0 + index : nullptr, work.periodicity + index);
  }
  if (end != work.frames) return;
  const std::int64_t state = static_cast<std::int64_t>(kBlocksOfState) * hop;
  for (int i = thread; i < state; i += kThreads) {
    work.state_out[row * state + i] = past(work, row, static_cast<std::int64_t>(work.frames) * hop + i);
  }
}

}  // namespace autovoice::pitch_yin
