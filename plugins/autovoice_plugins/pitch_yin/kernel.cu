// The launches: constants into the workspace, then the tracker.
#include <algorithm>

#include "../device/launch.h"
#include "tracker.h"

namespace autovoice::pitch_yin {
namespace {

constexpr int kBlocksTogether = 4;  // On a multiprocessor, by shared memory: what registers may be spent.
constexpr int kLongestRun = 33;

struct TableWork {
  Tables tables;
  int size, length, low, longest;
};

__global__ void __launch_bounds__(kThreads) table_kernel(TableWork work) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < work.size) work.tables.roots[i] = unit_root(i, work.size);
  if (i < work.length) work.tables.taps[i] = smoothing(i, work.length);
  if (i <= work.longest) work.tables.cost[i] = i < work.low ? 0.0f : octave_cost(i, work.low);
}

using BasePlan = FixedPlan<9, 10, 8>;

__global__ void __launch_bounds__(kThreads, kBlocksTogether) base_kernel(Work<BasePlan> work) {
  AUTOVOICE_SHARED(memory);
  track(work, memory);
}

__global__ void __launch_bounds__(kThreads) any_kernel(Work<AnyPlan> work) {
  AUTOVOICE_SHARED(memory);
  const std::size_t block = static_cast<std::size_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  track(work, work.scratch != nullptr ? work.scratch + block * work.block_bytes : memory);
}

Search search_of(const autovoice_pitch_yin_options& options) {
  const double rate = options.sample_rate;
  const int length = std::max(1, static_cast<int>(std::nearbyint(kLowpassSeconds * rate)));
  return {static_cast<int>(std::floor(rate / options.f0_max)), static_cast<int>(std::ceil(rate / options.f0_min)),
      length, options.hop + 2 - length, static_cast<float>(rate), options.f0_min, options.f0_max, options.threshold,
      options.voicing_threshold};
}

// The next size that is made of 2, 3 and 5: three hops hold a block and what it is compared with.
int transform_size(int hop) {
  for (int size = 3 * hop;; ++size) {
    int rest = size;
    for (const int factor : {2, 3, 5}) {
      while (rest % factor == 0) rest /= factor;
    }
    if (rest == 1) return size;
  }
}

// How a launch is divided and where its workspace goes.
struct Layout {
  Search search;
  int size, run, runs;
  std::size_t block_bytes, taps, cost, scratch, total;
  bool in_shared;

  Layout(const autovoice_pitch_yin_options& options, std::int64_t batch, std::int64_t frames)
      : search(search_of(options)), size(transform_size(options.hop)) {
    block_bytes = aligned(Scratch::bytes(size, options.hop, search.length));
    in_shared = block_bytes <= kSharedBytes;
    // Odd runs end with a pair. Long ones waste few blocks at their beginning; short ones fill the device when
    // there is little to do. Where blocks need memory of their own, the length may not depend on the device.
    run = kLongestRun;
    const std::int64_t wanted = 4 * static_cast<std::int64_t>(multiprocessors());
    while (in_shared && run > 1 && batch * ((frames + run - 1) / run) < wanted) run = run > 3 ? run / 2 | 1 : 1;
    runs = static_cast<int>((frames + run - 1) / run);
    taps = aligned(size * sizeof(Complex));
    cost = taps + aligned(search.length * sizeof(float));
    scratch = cost + aligned((2 * options.hop + 1) * sizeof(float));
    total = scratch + (in_shared ? 0 : static_cast<std::size_t>(batch) * runs * block_bytes);
  }
};

}  // namespace
}  // namespace autovoice::pitch_yin

using namespace autovoice;

std::int32_t autovoice_pitch_yin_check(const autovoice_pitch_yin_options* options) {
  const int hop = options->hop;
  const float f0_min = options->f0_min, f0_max = options->f0_max;
  if (options->sample_rate < 1) return refuse("sample_rate=%d Hz is no rate; use 1 or more.", options->sample_rate);
  if (hop < 1 || hop > 1 << 18) return refuse("hop=%d samples is no block; use 1 to %d.", hop, 1 << 18);
  if (!(0.0f < f0_min && f0_min < f0_max && std::isfinite(f0_max))) {
    return refuse("f0_min=%g and f0_max=%g Hz are not a range; give 0 < f0_min < f0_max.", f0_min, f0_max);
  }
  const double rate = options->sample_rate, low = std::floor(rate / f0_max), high = std::ceil(rate / f0_min);
  if (low < 2 || high > 2.0 * hop) {
    return refuse("The pitch range %g to %g Hz has periods of %g to %g samples, outside 2 to %d (two hops); choose a "
                  "range between %g and %g Hz.",
        f0_min, f0_max, low, high, 2 * hop, rate / (2 * hop), rate / 2);
  }
  const int length = std::max(1, static_cast<int>(std::nearbyint(pitch_yin::kLowpassSeconds * rate)));
  if (hop < length - 1) {
    return refuse("hop=%d samples is shorter than the prefilter at %d Hz; use %d or more.", hop, options->sample_rate,
        length - 1);
  }
  if (!std::isfinite(options->threshold) || !std::isfinite(options->voicing_threshold)) {
    return refuse("threshold=%g and voicing_threshold=%g must be finite.", options->threshold, options->voicing_threshold);
  }
  return 0;
}

std::size_t autovoice_pitch_yin_workspace(
    const autovoice_pitch_yin_options* options, std::int64_t batch, std::int64_t frames) {
  return pitch_yin::Layout(*options, batch, frames).total;
}

std::int32_t autovoice_pitch_yin(const autovoice_pitch_yin_options* options, std::int64_t batch, std::int64_t frames,
    autovoice_samples audio, const float* state_in, float* f0, float* periodicity, float* state_out, void* workspace,
    autovoice_stream stream) {
  using namespace pitch_yin;
  if (autovoice_pitch_yin_check(options) != 0 || check_sizes(batch, frames, options->hop) != 0 ||
      check_samples("audio", audio) != 0) {
    return 1;
  }
  const Layout layout(*options, batch, frames);
  auto* const bytes = static_cast<unsigned char*>(workspace);
  const Tables tables{reinterpret_cast<Complex*>(bytes), reinterpret_cast<float*>(bytes + layout.taps),
      reinterpret_cast<float*>(bytes + layout.cost)};
  const int longest = 2 * options->hop;
  const TableWork table_work{tables, layout.size, layout.search.length, layout.search.low, longest};
  const dim3 table_grid{static_cast<unsigned>((layout.size + kThreads - 1) / kThreads)};
  if (launch(table_kernel, table_grid, kThreads, 0, stream, table_work) != 0) return 1;

  const dim3 grid{static_cast<unsigned>(layout.runs), static_cast<unsigned>(batch), 1};
  unsigned char* const scratch = layout.in_shared ? nullptr : bytes + layout.scratch;
  if (layout.size == BasePlan::kSize && layout.in_shared) {
    const Work<BasePlan> work{audio, state_in, f0, periodicity, state_out, tables, scratch, layout.block_bytes, {},
        layout.search, static_cast<int>(frames), options->hop, layout.run};
    return launch(base_kernel, grid, kThreads, layout.block_bytes, stream, work);
  }
  const Work<AnyPlan> work{audio, state_in, f0, periodicity, state_out, tables, scratch, layout.block_bytes,
      AnyPlan(layout.size), layout.search, static_cast<int>(frames), options->hop, layout.run};
  return launch(any_kernel, grid, kThreads, layout.in_shared ? layout.block_bytes : 0, stream, work);
}
