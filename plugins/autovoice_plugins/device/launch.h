// Launching and reporting: the only place that calls the CUDA runtime.
#pragma once

#include <cstddef>
#include <cstdint>

#include "portable.h"

namespace autovoice {

// Shared memory of a block that every architecture from sm_75 on offers.
constexpr std::size_t kSharedBytes = 64 * 1024;

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + 15) / 16 * 16; }

// Sets the message of autovoice_last_error and returns 1.
__attribute__((format(printf, 1, 2))) std::int32_t refuse(const char* format, ...);

// Returns 0 if batch, frames and the samples of a launch are possible.
std::int32_t check_sizes(std::int64_t batch, std::int64_t frames, std::int64_t samples_per_frame);

// Returns 0 if there is data of a known type.
std::int32_t check_samples(const char* name, const autovoice_samples& samples);

// The number of multiprocessors of the current device; 1 where there is none.
int multiprocessors();

#if defined(__CUDACC__)
std::int32_t launch_kernel(
    const void* kernel, dim3 grid, unsigned threads, std::size_t shared, autovoice_stream stream, void* work);

template <class Work>
std::int32_t launch(void (*kernel)(Work), dim3 grid, unsigned threads, std::size_t shared, autovoice_stream stream,
    Work work) {
  return launch_kernel(reinterpret_cast<const void*>(kernel), grid, threads, shared, stream, &work);
}
#else
template <class Work>
std::int32_t launch(void (*kernel)(Work), dim3 grid, unsigned threads, std::size_t shared, autovoice_stream, Work work) {
  gridDim = grid;
  blockDim = {threads, 1, 1};
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = {x, y, 0};
      host::block().run(kernel, work, threads, shared);
    }
  }
  return 0;
}
#endif

}  // namespace autovoice
