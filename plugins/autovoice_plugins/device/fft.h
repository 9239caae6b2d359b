// Forward complex DFTs by the threads of one block: Stockham's self-sorting passes through shared memory.
//
// A transform reads its input by a function and hands its output to another, so that windows, unpacking and
// overlap-add need no pass of their own. A size known at compile time takes three passes with large radices;
// any other size goes through primes.
#pragma once

#include <utility>

#include "portable.h"

namespace autovoice {

namespace constants {

constexpr double kTurn = 6.283185307179586476925286766559;

__host__ __device__ constexpr double taylor(double x, double term, int next) {
  double sum = term;
  for (int i = 0; i < 14; ++i, next += 2) {
    term *= -x * x / (next * (next + 1));
    sum += term;
  }
  return sum;
}

__host__ __device__ constexpr double cosine(double turns) { return taylor(turns * kTurn, 1.0, 1); }
__host__ __device__ constexpr double sine(double turns) { return taylor(turns * kTurn, turns * kTurn, 2); }

// exp(-2 pi i K / N), -1/2 <= K/N <= 1/2.
template <int K, int N>
struct Root {
  static constexpr double kTurns = static_cast<double>(2 * K > N ? K - N : K) / N;
  static constexpr float re = static_cast<float>(cosine(kTurns));
  static constexpr float im = static_cast<float>(-sine(kTurns));
};

}  // namespace constants

template <int K, int N>
__host__ __device__ __forceinline__ Complex turned(Complex a) {
  constexpr int k = K % N;
  if constexpr (k == 0) {
    return a;
  } else if constexpr (4 * k == N) {
    return {a.im, -a.re};
  } else if constexpr (2 * k == N) {
    return {-a.re, -a.im};
  } else if constexpr (4 * k == 3 * N) {
    return {-a.im, a.re};
  } else {
    return a * Complex{constants::Root<k, N>::re, constants::Root<k, N>::im};
  }
}

// A number known at compile time; std::integral_constant, which device code may not convert.
template <int N>
struct Number {
  static constexpr int value = N;
  __host__ __device__ constexpr operator int() const { return N; }
};

template <class Function, int... Is>
__host__ __device__ __forceinline__ void unrolled(Function&& function, std::integer_sequence<int, Is...>) {
  (function(Number<Is>{}), ...);
}

// Calls function(0), function(1) ... with numbers known at compile time.
template <int N, class Function>
__host__ __device__ __forceinline__ void unrolled(Function&& function) {
  unrolled(function, std::make_integer_sequence<int, N>{});
}

__host__ __device__ constexpr int smallest_factor(int n) {
  if (n % 4 == 0) return 4;
  int factor = 2;
  while (n % factor != 0) ++factor;
  return factor;
}

// The DFT of N numbers in registers.
template <int N>
__host__ __device__ __forceinline__ void dft(Complex (&v)[N]) {
  constexpr int A = smallest_factor(N), B = N / A;
  if constexpr (N == 2) {
    const Complex a = v[0], b = v[1];
    v[0] = a + b;
    v[1] = a - b;
  } else if constexpr (N == 4) {
    const Complex a = v[0] + v[2], b = v[0] - v[2], c = v[1] + v[3], d = turned<1, 4>(v[1] - v[3]);
    v[0] = a + c;
    v[1] = b + d;
    v[2] = a - c;
    v[3] = b - d;
  } else if constexpr (B == 1) {
    // An odd prime: sums and differences of opposite inputs meet cosines and sines.
    constexpr int H = (N - 1) / 2;
    Complex sum[H], difference[H], result[N];
    result[0] = v[0];
    unrolled<H>([&](auto i) {
      sum[i] = v[i + 1] + v[N - 1 - i];
      difference[i] = v[i + 1] - v[N - 1 - i];
      result[0] = result[0] + sum[i];
    });
    unrolled<H>([&](auto k) {
      Complex even = v[0], odd{0.0f, 0.0f};
      unrolled<H>([&](auto i) {
        using Root = constants::Root<(decltype(i)::value + 1) * (decltype(k)::value + 1) % N, N>;
        even = even + Root::re * sum[i];
        odd = odd + Root::im * difference[i];
      });
      // i times odd.
      result[k + 1] = {even.re - odd.im, even.im + odd.re};
      result[N - 1 - k] = {even.re + odd.im, even.im - odd.re};
    });
    unrolled<N>([&](auto i) { v[i] = result[i]; });
  } else {
    Complex rows[A][B];
    unrolled<B>([&](auto b) {
      Complex column[A];
      unrolled<A>([&](auto a) { column[a] = v[B * a + b]; });
      dft<A>(column);
      unrolled<A>([&](auto a) { rows[a][b] = turned<decltype(a)::value * decltype(b)::value, N>(column[a]); });
    });
    unrolled<A>([&](auto a) {
      dft<B>(rows[a]);
      unrolled<B>([&](auto b) { v[a + A * b] = rows[a][b]; });
    });
  }
}

// exp(-2 pi i index / size).
__host__ __device__ __forceinline__ Complex unit_root(int index, int size) {
  const double angle = -constants::kTurn * index / size;
  return {static_cast<float>(cos(angle)), static_cast<float>(sin(angle))};
}

// unit_root(k, size) for all k that a plan looks up, in memory.
struct Roots {
  const Complex* table;
  int size;
};

struct Lane {
  int thread, threads;
};

// One pass of radix R over n numbers; `done` is the product of the radices before.
template <int R, class Load, class Store>
__host__ __device__ __forceinline__ void pass(int n, int done, Roots roots, Lane lane, Load load, Store store) {
  const int butterflies = n / R;
  for (int j = lane.thread; j < butterflies; j += lane.threads) {
    Complex v[R];
    unrolled<R>([&](auto r) { v[r] = load(j + r * butterflies); });
    const int k = j % done;
    if (done > 1) {
      Complex power[R];
      power[1] = roots.table[k * (roots.size / (done * R))];
      v[1] = v[1] * power[1];
      unrolled<R - 2>([&](auto i) {
        constexpr int r = decltype(i)::value + 2;
        power[r] = power[r / 2] * power[r - r / 2];
        v[r] = v[r] * power[r];
      });
    }
    dft<R>(v);
    const int base = (j - k) * R + k;
    unrolled<R>([&](auto r) { store(base + r * done, v[r]); });
  }
}

// The same for a radix that no register array is made for: every output is summed by itself.
template <class Load, class Store>
__host__ __device__ __forceinline__ void slow_pass(
    int radix, int n, int done, Roots roots, Lane lane, Load load, Store store) {
  const int butterflies = n / radix, step = roots.size / (done * radix);
  for (int i = lane.thread; i < n; i += lane.threads) {
    const int j = i / radix, q = i % radix, k = j % done, turn = k + q * done;
    Complex sum = load(j);
    for (int r = 1, angle = turn; r < radix; ++r, angle += turn) {
      angle %= done * radix;
      sum = sum + load(j + r * butterflies) * roots.table[angle * step];
    }
    store((j - k) * radix + turn, sum);
  }
}

// Three passes. The first radix is best odd: then its writes meet no bank twice.
template <int A, int B, int C>
struct FixedPlan {
  static constexpr int kSize = A * B * C;
  __host__ __device__ constexpr int size() const { return kSize; }
  // How many roots a transform of this size, or of half of it, looks up: half a turn.
  __host__ __device__ constexpr int root_count() const { return kSize / 2 + 1; }

  // `roots` is for a multiple of this size. `load` may read `pong`, and `store` write `ping`. The caller puts a
  // barrier before, where `load` reads what others wrote, and after.
  template <class Load, class Store>
  __device__ __forceinline__ void transform(
      Roots roots, Lane lane, Complex* ping, Complex* pong, Load load, Store store) const {
    pass<A>(kSize, 1, roots, lane, load, [&](int i, Complex v) { ping[i] = v; });
    __syncthreads();
    pass<B>(kSize, A, roots, lane, [&](int i) { return ping[i]; }, [&](int i, Complex v) { pong[i] = v; });
    __syncthreads();
    pass<C>(kSize, A * B, roots, lane, [&](int i) { return pong[i]; }, store);
  }
};

// Any size.
struct AnyPlan {
  static constexpr int kMostFactors = 16;
  int n = 1, count = 0;
  int factors[kMostFactors] = {};

  AnyPlan() = default;
  explicit AnyPlan(int size) : n(size) {
    // Below 2^31 there are at most 15 fours and a two.
    for (int rest = size; rest > 1; rest /= factors[count++]) factors[count] = smallest_factor(rest);
  }

  __host__ __device__ int size() const { return n; }
  __host__ __device__ int root_count() const { return n; }

  template <class Load, class Store>
  __device__ __forceinline__ void transform(
      Roots roots, Lane lane, Complex* ping, Complex* pong, Load load, Store store) const {
    for (int i = lane.thread; i < n; i += lane.threads) ping[i] = load(i);
    __syncthreads();
    passes(roots, lane, ping, pong);
    // `store` may write `ping`; what was read from there must be read first.
    if (count % 2 == 0) {
      for (int i = lane.thread; i < n; i += lane.threads) pong[i] = ping[i];
      __syncthreads();
    }
    for (int i = lane.thread; i < n; i += lane.threads) store(i, pong[i]);
  }

 private:
  // One copy for all transforms of a kernel.
  __device__ __noinline__ void passes(Roots roots, Lane lane, Complex* from, Complex* to) const {
    for (int number = 0, done = 1; number < count; done *= factors[number++]) {
      const auto read = [from](int i) { return from[i]; };
      const auto write = [to](int i, Complex v) { to[i] = v; };
      switch (factors[number]) {
        case 2: pass<2>(n, done, roots, lane, read, write); break;
        case 3: pass<3>(n, done, roots, lane, read, write); break;
        case 4: pass<4>(n, done, roots, lane, read, write); break;
        case 5: pass<5>(n, done, roots, lane, read, write); break;
        default: slow_pass(factors[number], n, done, roots, lane, read, write);
      }
      __syncthreads();
      Complex* const swapped = from;
      from = to;
      to = swapped;
    }
  }
};

}  // namespace autovoice
