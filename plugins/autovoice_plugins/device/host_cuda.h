// The part of CUDA that the kernels use, for a C++ compiler alone: every thread of a block is a fiber that runs
// until the next barrier, on one core. It is for checking, so it is strict: shared memory starts as NaN and has
// exactly the size that was asked for, a barrier that not all threads reach ends the process, and
// AUTOVOICE_THREAD_ORDER=reverse or =shuffled runs the threads in another order, which changes the result where
// a barrier is missing.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define AUTOVOICE_SHARED(name) unsigned char* const name = ::autovoice::host::block().shared()

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace autovoice::host {

// The threads of the block that runs now.
class Block {
 public:
  template <class Work>
  void run(void (*kernel)(Work), const Work& work, unsigned threads, std::size_t shared) {
    shared_ = std::make_unique<unsigned char[]>(shared);
    std::memset(shared_.get(), 0xff, shared);
    start_ = [](const void* call) {
      const auto& [function, argument] = *static_cast<const Call<Work>*>(call);
      function(argument);
    };
    const Call<Work> call{kernel, work};
    call_ = &call;
    prepare(threads);
    for (std::size_t finished = 0; finished < threads;) {
      finished = 0;
      for (const unsigned thread : order_) {
        resume(thread);
        finished += fibers_[thread].finished;
      }
      if (finished != 0 && finished != threads) fail("some threads of a block left while others wait at a barrier");
    }
    shared_.reset();
  }

  void barrier() {
    Fiber& fiber = fibers_[current_];
    if (_setjmp(fiber.resume) == 0) _longjmp(scheduler_, 1);
  }

  unsigned char* shared() { return shared_.get(); }

 private:
  template <class Work>
  struct Call {
    void (*kernel)(Work);
    const Work& work;
  };

  struct Fiber {
    std::unique_ptr<unsigned char[]> stack;
    ucontext_t begin;
    jmp_buf resume;
    bool started, finished;
  };

  static constexpr std::size_t kStackBytes = 256 * 1024;

  [[noreturn]] static void fail(const char* message) {
    std::fprintf(stderr, "autovoice: %s\n", message);
    std::abort();
  }

  void prepare(unsigned threads) {
    while (fibers_.size() < threads) {
      fibers_.emplace_back();
      // Not initialised: pages that no thread touches cost nothing.
      fibers_.back().stack.reset(new unsigned char[kStackBytes]);
    }
    for (Fiber& fiber : fibers_) fiber.started = fiber.finished = false;
    order_.resize(threads);
    std::iota(order_.begin(), order_.end(), 0u);
    const char* order = std::getenv("AUTOVOICE_THREAD_ORDER");
    if (order != nullptr && std::string(order) == "reverse") std::reverse(order_.begin(), order_.end());
    if (order != nullptr && std::string(order) == "shuffled") {
      std::shuffle(order_.begin(), order_.end(), random_);
    }
  }

  void resume(unsigned thread) {
    current_ = thread;
    threadIdx = {thread, 0, 0};
    if (_setjmp(scheduler_) == 0) enter(fibers_[thread]);
  }

  [[noreturn]] void enter(Fiber& fiber) {
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    getcontext(&fiber.begin);
    fiber.begin.uc_stack.ss_sp = fiber.stack.get();
    fiber.begin.uc_stack.ss_size = kStackBytes;
    fiber.begin.uc_link = nullptr;
    makecontext(&fiber.begin, &Block::main, 0);
    setcontext(&fiber.begin);
    fail("a fiber could not be started");
  }

  static void main();

  std::vector<Fiber> fibers_;
  std::vector<unsigned> order_;
  std::mt19937 random_{1};
  std::unique_ptr<unsigned char[]> shared_;
  void (*start_)(const void*) = nullptr;
  const void* call_ = nullptr;
  jmp_buf scheduler_;
  unsigned current_ = 0;
};

inline Block& block() {
  static thread_local Block block;
  return block;
}

inline void Block::main() {
  Block& block = host::block();
  block.start_(block.call_);
  block.fibers_[block.current_].finished = true;
  _longjmp(block.scheduler_, 1);
}

}  // namespace autovoice::host

inline void __syncthreads() { autovoice::host::block().barrier(); }
