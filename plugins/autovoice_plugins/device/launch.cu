#include "launch.h"

#include <cstdarg>
#include <cstdio>

namespace {

char* last_error() {
  static thread_local char message[512] = "";
  return message;
}

}  // namespace

namespace autovoice {

std::int32_t refuse(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error(), 512, format, arguments);
  va_end(arguments);
  return 1;
}

std::int32_t check_sizes(std::int64_t batch, std::int64_t frames, std::int64_t samples_per_frame) {
  // Blocks along y are limited to 65535; 2^31 samples of one sequence are a day at 24 kHz.
  if (batch < 1 || batch > 65535) {
    return refuse("batch=%lld cannot be launched; use 1 to 65535.", static_cast<long long>(batch));
  }
  if (frames < 1 || frames > INT32_MAX / samples_per_frame) {
    return refuse("frames=%lld of %lld samples cannot be launched; use 1 to %lld.", static_cast<long long>(frames),
        static_cast<long long>(samples_per_frame), static_cast<long long>(INT32_MAX / samples_per_frame));
  }
  return 0;
}

std::int32_t check_samples(const char* name, const autovoice_samples& samples) {
  if (samples.data == nullptr) return refuse("%s is missing; pass an array.", name);
  if (samples.type != AUTOVOICE_FLOAT32 && samples.type != AUTOVOICE_FLOAT16) {
    return refuse("%s is of type %d; use AUTOVOICE_FLOAT32 or AUTOVOICE_FLOAT16.", name, samples.type);
  }
  return 0;
}

#if defined(__CUDACC__)

int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    return 1;
  }
  return count;
}

std::int32_t launch_kernel(
    const void* kernel, dim3 grid, unsigned threads, std::size_t shared, autovoice_stream stream, void* work) {
  cudaError_t status = cudaSuccess;
  if (shared > 48 * 1024) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  }
  if (status == cudaSuccess) {
    status = cudaLaunchKernel(kernel, grid, dim3(threads), &work, shared, static_cast<cudaStream_t>(stream));
  }
  if (status == cudaSuccess) return 0;
  return refuse("the kernel could not be launched: %s (%s).", cudaGetErrorString(status), cudaGetErrorName(status));
}

#else

int multiprocessors() { return 1; }

#endif

}  // namespace autovoice

const char* autovoice_last_error(void) { return last_error(); }

std::int32_t autovoice_interface_version(void) { return 1; }
