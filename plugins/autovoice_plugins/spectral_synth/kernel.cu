// A block synthesises a run of frames, one after the other, in shared memory: phases of both filters by two
// DFTs, the spectra of excitation and noise by one each (faded in and faded out as real and imaginary part), one
// inverse of half the size, and an overlap-add that leaves the block once. Runs begin some frames early, so that
// no run waits for the tail of another.
#include <algorithm>

#include "../device/fft.h"
#include "../device/launch.h"
#include "arithmetic.h"

namespace autovoice::spectral_synth {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocksTogether = 4;  // On a multiprocessor, by shared memory: what registers may be spent.
constexpr int kLongestRun = 32;

// Constants, made in the workspace before every launch.
struct Tables {
  Complex* roots;  // [fft_size]
  Place* places;   // [fft_size / 2 + 1]
  float* rise;     // [hop]
};

template <class Whole, class Half>
struct Work {
  autovoice_samples excitation, noise, harmonic_filter, noise_filter, audio;
  const float* state_in;
  float* state_out;
  Tables tables;
  unsigned char* scratch;  // Per block where shared memory is too small, else NULL.
  std::size_t block_bytes;
  Whole whole;
  Half half;
  int frames, hop, bands, run;
};

struct TableWork {
  Tables tables;
  int sample_rate, hop, fft_size, bands;
};

__global__ void __launch_bounds__(kThreads) table_kernel(TableWork work) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < work.fft_size) work.tables.roots[i] = unit_root(i, work.fft_size);
  if (i <= work.fft_size / 2) work.tables.places[i] = place(i, work.sample_rate, work.fft_size, work.bands);
  if (i < work.hop) work.tables.rise[i] = fade_in(i, work.hop);
}

// What a block keeps in shared memory.
struct Scratch {
  Complex *ping, *pong;          // [fft_size] each
  Complex* roots;                // As many as both plans need, and half a turn for unpacking
  Complex* responses;            // Of this frame and the one before, harmonic and noise; [2, 2, fft_size / 2 + 1]
  Complex* spectrum;             // [fft_size / 2 + 1]
  float* owed;                   // [fft_size], a ring
  float* above;                  // [2, bands]
  int bins;

  __host__ __device__ static std::size_t bytes(int size, int roots, int bands) {
    const std::size_t bins = size / 2 + 1;
    return (2 * size + roots + 5 * bins) * sizeof(Complex) + (size + 2 * bands) * sizeof(float);
  }

  __device__ __forceinline__ Scratch(unsigned char* memory, int size, int root_count)
      : ping(reinterpret_cast<Complex*>(memory)),
        pong(ping + size),
        roots(pong + size),
        responses(roots + root_count),
        spectrum(responses + 4 * (size / 2 + 1)),
        owed(reinterpret_cast<float*>(spectrum + size / 2 + 1)),
        above(owed + size),
        bins(size / 2 + 1) {}

  __device__ __forceinline__ Complex* response(int slot, int kind) const { return responses + (2 * slot + kind) * bins; }
};

// Leaves the responses of `frame`, -1 being the state's, in scratch.responses[slot]. Ends with a barrier.
template <class W>
__device__ __forceinline__ void respond(const W& work, const Scratch& scratch, Lane lane, int row, int frame, int slot) {
  const int size = work.whole.size(), bands = work.bands;
  for (int i = lane.thread; i < 2 * bands; i += lane.threads) {
    const bool harmonic = i < bands;
    const int band = harmonic ? i : i - bands;
    const std::int64_t index = (static_cast<std::int64_t>(row) * work.frames + frame) * bands + band;
    const int state = 2 * bands + size - work.hop;
    scratch.above[i] = frame < 0 ? work.state_in[static_cast<std::int64_t>(row) * state + i]
                              : above_floor(load(harmonic ? work.harmonic_filter : work.noise_filter, index));
  }
  __syncthreads();
  const Roots roots{scratch.roots, size};
  const auto envelopes = [&](int i) {
    const Place place = work.tables.places[2 * i <= size ? i : size - i];
    return Complex{interpolated(scratch.above, place), interpolated(scratch.above + bands, place)};
  };
  const auto make_odd = [&](int i, Complex v) { scratch.ping[i] = odd_cepstrum(v, i, size); };
  work.whole.transform(roots, lane, scratch.ping, scratch.pong, envelopes, make_odd);
  __syncthreads();
  Complex *const harmonic = scratch.response(slot, 0), *const noise = scratch.response(slot, 1);
  const auto finish = [&](int i, Complex v) {
    if (2 * i > size) return;
    const Complex above = envelopes(i);
    harmonic[i] = response(above.re, v.im);
    noise[i] = response(above.im, -v.re);
  };
  // ping and pong have changed places.
  work.whole.transform(roots, lane, scratch.pong, scratch.ping, [&](int i) { return scratch.ping[i]; }, finish);
  __syncthreads();
}

// Adds one filtered signal of the frame to scratch.spectrum. Ends with a barrier.
template <class W>
__device__ __forceinline__ void filter(
    const W& work, const Scratch& scratch, Lane lane, const autovoice_samples& signal, std::int64_t first, int kind, int slot) {
  const int size = work.whole.size();
  const auto faded = [&](int i) {
    if (i >= work.hop) return Complex{0.0f, 0.0f};
    const float sample = load(signal, first + i), rising = sample * work.tables.rise[i];
    return Complex{rising, sample - rising};
  };
  const auto keep = [&](int i, Complex v) { scratch.ping[i] = v; };
  work.whole.transform(Roots{scratch.roots, size}, lane, scratch.ping, scratch.pong, faded, keep);
  __syncthreads();
  for (int k = lane.thread; 2 * k <= size; k += lane.threads) {
    const Complex mirror = scratch.ping[k == 0 ? 0 : size - k];
    const Complex bin =
        filtered(scratch.ping[k], mirror, scratch.response(slot, kind)[k], scratch.response(1 - slot, kind)[k]);
    scratch.spectrum[k] = kind == 0 ? bin : scratch.spectrum[k] + bin;
  }
  __syncthreads();
}

template <class W>
__device__ __forceinline__ void synthesise(const W& work, unsigned char* memory) {
  const int size = work.whole.size(), half = work.half.size(), hop = work.hop, bands = work.bands;
  const int tail = size - hop, state = 2 * bands + tail, row = static_cast<int>(blockIdx.y);
  const Lane lane{static_cast<int>(threadIdx.x), kThreads};
  const Scratch scratch(memory, size, work.whole.root_count());
  const float* const state_in = work.state_in + static_cast<std::int64_t>(row) * state;
  float* const state_out = work.state_out + static_cast<std::int64_t>(row) * state;

  const int first = static_cast<int>(blockIdx.x) * work.run;
  const int end = first + work.run < work.frames ? first + work.run : work.frames;
  const int early = first - (size / hop - 1), begin = early > 0 ? early : 0;
  for (int i = lane.thread; i < work.whole.root_count(); i += lane.threads) scratch.roots[i] = work.tables.roots[i];
  for (int i = lane.thread; i < size; i += lane.threads) {
    scratch.owed[i] = begin == 0 && i < tail ? state_in[2 * bands + i] : 0.0f;
  }
  __syncthreads();
  int slot = 0, base = 0;
  respond(work, scratch, lane, row, begin - 1, slot);
  for (int frame = begin; frame < end; ++frame) {
    slot = 1 - slot;
    respond(work, scratch, lane, row, frame, slot);
    const std::int64_t sample = (static_cast<std::int64_t>(row) * work.frames + frame) * hop;
    filter(work, scratch, lane, work.excitation, sample, 0, slot);
    filter(work, scratch, lane, work.noise, sample, 1, slot);
    const auto pack = [&](int k) {
      return packed_bin(scratch.spectrum[k], scratch.spectrum[half - k], scratch.roots[k], half);
    };
    const bool audible = frame >= first;
    const auto put = [&](int i, float value) {
      int place = base + i;
      if (place >= size) place -= size;
      const float sum = scratch.owed[place] + value;
      scratch.owed[place] = i < hop ? 0.0f : sum;
      if (audible && i < hop) store(work.audio, sample + i, sum);
    };
    const auto add = [&](int i, Complex v) {
      put(2 * i, v.re);
      put(2 * i + 1, -v.im);
    };
    work.half.transform(Roots{scratch.roots, size}, lane, scratch.ping, scratch.pong, pack, add);
    __syncthreads();
    base += hop;
    if (base >= size) base -= size;
  }
  if (end != work.frames) return;
  for (int i = lane.thread; i < 2 * bands; i += lane.threads) state_out[i] = scratch.above[i];
  for (int i = lane.thread; i < tail; i += lane.threads) {
    const int place = base + i;
    state_out[2 * bands + i] = scratch.owed[place < size ? place : place - size];
  }
}

using WholeBase = FixedPlan<15, 8, 8>;
using HalfBase = FixedPlan<5, 12, 8>;
static_assert(HalfBase::kSize * 2 == WholeBase::kSize);

__global__ void __launch_bounds__(kThreads, kBlocksTogether) base_kernel(Work<WholeBase, HalfBase> work) {
  AUTOVOICE_SHARED(memory);
  synthesise(work, memory);
}

__global__ void __launch_bounds__(kThreads) any_kernel(Work<AnyPlan, AnyPlan> work) {
  AUTOVOICE_SHARED(memory);
  const std::size_t block = static_cast<std::size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  synthesise(work, work.scratch != nullptr ? work.scratch + block * work.block_bytes : memory);
}

// How a launch is divided and where its workspace goes.
struct Layout {
  int run, runs;
  std::size_t block_bytes, places, rise, scratch, total;
  bool is_base, in_shared;

  Layout(const autovoice_spectral_synth_options& options, std::int64_t batch, std::int64_t frames) {
    const int size = options.fft_size;
    is_base = size == WholeBase::kSize;
    const int roots = is_base ? WholeBase{}.root_count() : AnyPlan(size).root_count();
    block_bytes = aligned(Scratch::bytes(size, roots, options.bands));
    in_shared = block_bytes <= kSharedBytes;
    // Long runs waste few frames on tails; short ones fill the device when there is little to do. Where blocks
    // need memory of their own, the length may not depend on the device.
    run = kLongestRun;
    const std::int64_t wanted = 4 * static_cast<std::int64_t>(multiprocessors());
    while (in_shared && run > 1 && batch * ((frames + run - 1) / run) < wanted) run /= 2;
    runs = static_cast<int>((frames + run - 1) / run);
    places = aligned(size * sizeof(Complex));
    rise = places + aligned((size / 2 + 1) * sizeof(Place));
    scratch = rise + aligned(options.hop * sizeof(float));
    total = scratch + (in_shared ? 0 : static_cast<std::size_t>(batch) * runs * block_bytes);
  }
};

template <class Whole, class Half>
std::int32_t start(void (*kernel)(Work<Whole, Half>), Whole whole, Half half, const Layout& layout, std::int64_t batch,
    autovoice_stream stream, Work<Whole, Half> work) {
  work.whole = whole;
  work.half = half;
  const dim3 grid{static_cast<unsigned>(layout.runs), static_cast<unsigned>(batch), 1};
  return launch(kernel, grid, kThreads, layout.in_shared ? layout.block_bytes : 0, stream, work);
}

}  // namespace
}  // namespace autovoice::spectral_synth

using namespace autovoice;

std::int32_t autovoice_spectral_synth_check(const autovoice_spectral_synth_options* options) {
  const int hop = options->hop, size = options->fft_size;
  if (options->sample_rate < 1) return refuse("sample_rate=%d Hz is no rate; use 1 or more.", options->sample_rate);
  if (hop < 1) return refuse("hop=%d samples is no block; use 1 or more.", hop);
  if (size < 1 || size % hop != 0 || size / 2 < hop || size % 2 != 0) {
    return refuse("fft_size=%d must be even and two or more times hop=%d; use %lld.", size, hop, 4LL * hop);
  }
  if (size > 1 << 20) return refuse("fft_size=%d is more than the kernel serves; use at most %d.", size, 1 << 20);
  if (options->bands < 2) return refuse("bands=%d cannot span a spectrum; use 2 or more.", options->bands);
  return 0;
}

std::size_t autovoice_spectral_synth_workspace(
    const autovoice_spectral_synth_options* options, std::int64_t batch, std::int64_t frames) {
  return spectral_synth::Layout(*options, batch, frames).total;
}

std::int32_t autovoice_spectral_synth(const autovoice_spectral_synth_options* options, std::int64_t batch,
    std::int64_t frames, autovoice_samples excitation, autovoice_samples noise, autovoice_samples harmonic_filter,
    autovoice_samples noise_filter, const float* state_in, autovoice_samples audio, float* state_out, void* workspace,
    autovoice_stream stream) {
  using namespace spectral_synth;
  if (autovoice_spectral_synth_check(options) != 0 || check_sizes(batch, frames, options->hop) != 0 ||
      check_samples("excitation", excitation) != 0 || check_samples("noise", noise) != 0 ||
      check_samples("harmonic_filter", harmonic_filter) != 0 || check_samples("noise_filter", noise_filter) != 0 ||
      check_samples("audio", audio) != 0) {
    return 1;
  }
  const Layout layout(*options, batch, frames);
  auto* const bytes = static_cast<unsigned char*>(workspace);
  const Tables tables{reinterpret_cast<Complex*>(bytes), reinterpret_cast<Place*>(bytes + layout.places),
      reinterpret_cast<float*>(bytes + layout.rise)};
  const TableWork table_work{tables, options->sample_rate, options->hop, options->fft_size, options->bands};
  const dim3 table_grid{static_cast<unsigned>((options->fft_size + kThreads - 1) / kThreads)};
  if (launch(table_kernel, table_grid, kThreads, 0, stream, table_work) != 0) return 1;

  const auto fill = [&](auto work) {
    work.excitation = excitation;
    work.noise = noise;
    work.harmonic_filter = harmonic_filter;
    work.noise_filter = noise_filter;
    work.audio = audio;
    work.state_in = state_in;
    work.state_out = state_out;
    work.tables = tables;
    work.scratch = layout.in_shared ? nullptr : bytes + layout.scratch;
    work.block_bytes = layout.block_bytes;
    work.frames = static_cast<int>(frames);
    work.hop = options->hop;
    work.bands = options->bands;
    work.run = layout.run;
    return work;
  };
  if (layout.is_base) {
    return start(base_kernel, WholeBase{}, HalfBase{}, layout, batch, stream, fill(Work<WholeBase, HalfBase>{}));
  }
  const AnyPlan whole(options->fft_size), half(options->fft_size / 2);
  return start(any_kernel, whole, half, layout, batch, stream, fill(Work<AnyPlan, AnyPlan>{}));
}
