/* The custom ops on a CUDA device, without TensorRT: a C interface that Python reaches by ctypes.
 *
 * libautovoice_kernels.so holds it. libautovoice_kernels_host.so, built by a C++ compiler alone, holds the same
 * functions for host memory: the same kernels run there thread by thread, and the stream is ignored.
 *
 * Every launch is asynchronous on the given stream, allocates nothing, waits for nothing and may be captured in
 * a CUDA graph. Arrays are dense, row-major, in device memory, and may not overlap. B is batch, F frames (at least one of each).
 * `reference.py` in each op's folder defines the results. Samples may be float32 or float16, each array for itself;
 * F0, periodicity and state are always float32.
 */
#ifndef AUTOVOICE_PLUGINS_KERNELS_H
#define AUTOVOICE_PLUGINS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define AUTOVOICE_API
#else
#define AUTOVOICE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef void* autovoice_stream; /* a cudaStream_t */

enum autovoice_type { AUTOVOICE_FLOAT32 = 0, AUTOVOICE_FLOAT16 = 1 };

/* Samples of either type; data == NULL where an op takes none. */
typedef struct {
  void* data;
  int32_t type;
} autovoice_samples;

enum autovoice_waveform { AUTOVOICE_PULSE = 0, AUTOVOICE_SINE = 1 };

typedef struct {
  int32_t sample_rate;
  int32_t hop;
  float f0_min;
  float f0_max;
  float threshold;
  float voicing_threshold;
} autovoice_pitch_yin_options;

typedef struct {
  int32_t sample_rate;
  int32_t hop;
  int32_t waveform;
} autovoice_harmonic_source_options;

typedef struct {
  int32_t sample_rate;
  int32_t hop;
  int32_t fft_size;
  int32_t bands;
} autovoice_spectral_synth_options;

/* All functions below return 0, or another number after which autovoice_last_error() says what is wrong. */

/* The message of this thread's last failure; never NULL. */
AUTOVOICE_API const char* autovoice_last_error(void);

/* Raised with every change of this interface. */
AUTOVOICE_API int32_t autovoice_interface_version(void);

/* Whether the options can be served: the checks of the reference. */
AUTOVOICE_API int32_t autovoice_pitch_yin_check(const autovoice_pitch_yin_options* options);
AUTOVOICE_API int32_t autovoice_harmonic_source_check(const autovoice_harmonic_source_options* options);
AUTOVOICE_API int32_t autovoice_spectral_synth_check(const autovoice_spectral_synth_options* options);

/* Bytes of workspace that a launch needs, aligned to 16; grows with batch and frames. */
AUTOVOICE_API size_t autovoice_pitch_yin_workspace(
    const autovoice_pitch_yin_options* options, int64_t batch, int64_t frames);
AUTOVOICE_API size_t autovoice_harmonic_source_workspace(
    const autovoice_harmonic_source_options* options, int64_t batch, int64_t frames);
AUTOVOICE_API size_t autovoice_spectral_synth_workspace(
    const autovoice_spectral_synth_options* options, int64_t batch, int64_t frames);

/* audio [B, hop F], state_in [B, 6 hop] -> f0 [B, F], periodicity [B, F], state_out [B, 6 hop]. */
AUTOVOICE_API int32_t autovoice_pitch_yin(const autovoice_pitch_yin_options* options, int64_t batch, int64_t frames,
    autovoice_samples audio, const float* state_in, float* f0, float* periodicity, float* state_out, void* workspace,
    autovoice_stream stream);

/* f0 [B, F], state_in [B, 2], noise [B, hop F] (sine only) -> excitation [B, hop F], state_out [B, 2]. */
AUTOVOICE_API int32_t autovoice_harmonic_source(const autovoice_harmonic_source_options* options, int64_t batch,
    int64_t frames, const float* f0, const float* state_in, autovoice_samples noise, autovoice_samples excitation,
    float* state_out, void* workspace, autovoice_stream stream);

/* excitation, noise [B, hop F], harmonic_filter, noise_filter [B, F, bands],
 * state_in [B, 2 bands + fft_size - hop] -> audio [B, hop F], state_out like state_in. */
AUTOVOICE_API int32_t autovoice_spectral_synth(const autovoice_spectral_synth_options* options, int64_t batch,
    int64_t frames, autovoice_samples excitation, autovoice_samples noise, autovoice_samples harmonic_filter,
    autovoice_samples noise_filter, const float* state_in, autovoice_samples audio, float* state_out, void* workspace,
    autovoice_stream stream);

#ifdef __cplusplus
}
#endif

#endif
