// The library's doors: what trtexec and IPluginRegistry::loadLibrary call, and the registration that happens
// by itself where a program only opens the library, as Triton and Polygraphy do.
#include <dlfcn.h>

#include <array>
#include <cstdio>

#include "plugin.h"

#define AUTOVOICE_STRING(x) #x
#define AUTOVOICE_LIBNVINFER(major) "libnvinfer.so." AUTOVOICE_STRING(major)

namespace autovoice::tensorrt {
namespace {

using nvinfer1::ILogger;
using nvinfer1::IPluginCreatorInterface;
using nvinfer1::IPluginRegistry;

nvinfer1::ILoggerFinder* logger_finder = nullptr;

const std::array<IPluginCreatorInterface*, 3>& creators() {
  // Never destroyed, as the library is never unloaded: the registry keeps the addresses until the process ends.
  static const std::array<IPluginCreatorInterface*, 3>& all = *new std::array<IPluginCreatorInterface*, 3>{
      new Creator(make_pitch_yin), new Creator(make_harmonic_source), new Creator(make_spectral_synth)};
  return all;
}

// A function of the TensorRT that this process has loaded, of the version this library was built for, or null.
template <class Function>
Function* of_tensorrt(const char* name) {
  void* const library = dlopen(AUTOVOICE_LIBNVINFER(NV_TENSORRT_MAJOR), RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  auto* const function = reinterpret_cast<Function*>(dlsym(library, name));
  dlclose(library);  // Only the count that dlopen raised.
  return function;
}

IPluginRegistry* registry() {
  auto* const get = of_tensorrt<IPluginRegistry*()>("getPluginRegistry");
  return get == nullptr ? nullptr : get();
}

__attribute__((constructor)) void register_creators() {
  IPluginRegistry* const plugins = registry();
  if (plugins == nullptr) return;
  for (IPluginCreatorInterface* const creator : creators()) plugins->registerCreator(*creator, kNamespace);
}

}  // namespace

void report(const std::string& message) noexcept {
  ILogger* logger = nullptr;
  if (logger_finder != nullptr) logger = logger_finder->findLogger();
  if (logger == nullptr) {
    auto* const get = of_tensorrt<ILogger*()>("getLogger");
    if (get != nullptr) logger = get();
  }
  if (logger != nullptr) {
    logger->log(ILogger::Severity::kERROR, message.c_str());
  } else {
    std::fprintf(stderr, "%s\n", message.c_str());
  }
}

}  // namespace autovoice::tensorrt

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  const auto& all = autovoice::tensorrt::creators();
  count = static_cast<std::int32_t>(all.size());
  return all.data();
}

__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  autovoice::tensorrt::logger_finder = finder;
}
}
