// CUDA C++ on an ordinary processor: the words of the language, and the intrinsics that our kernels use, in plain C++.
//
// One of two engines is included after this, and says who runs the threads: fibers.h (fast, any order that is asked for,
// finds barriers that do not fit) or threads.h (one OS thread each, so that ThreadSanitizer sees every race).
// NVIDIA's own cuda_bf16.h is used as it is: bfloat16 is rounded here as it is there.
#pragma once
#include <cuda_bf16.h>
#include <vector_types.h>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <tuple>
#include <vector>
#undef __global__
#undef __device__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#undef __grid_constant__
#undef __restrict__
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define CUDA_ON_HOST 1
using std::isfinite;
using std::isnan;
using std::max;
using std::min;

namespace host {
int lane();                                                        // of the thread that asks, in its warp
template <class T> T exchange(T value, int source);                // every lane offers a value and takes one

inline uint3 unflatten(unsigned i, dim3 d) { return {i % d.x, i / d.x % d.y, i / (d.x * d.y)}; }
inline unsigned count(dim3 d) { return d.x * d.y * d.z; }

// `void** arguments`, which is what a launch hands over, and the kernel with its own parameter types
template <class... A, size_t... N>
std::function<void()> bound(void (*kernel)(A...), void** arguments, std::index_sequence<N...>) {
  std::tuple<std::decay_t<A>...> values{*reinterpret_cast<std::decay_t<A>*>(arguments[N])...};
  return [=] { std::apply(kernel, values); };
}
template <class... A> std::function<void()> bound(void (*kernel)(A...), void** arguments) {
  return bound(kernel, arguments, std::index_sequence_for<A...>{});
}
// the size of each parameter; a pointer's is negative, so that a number of 8 bytes is not taken for one unless meant
template <class A> int size() { return std::is_pointer_v<A> ? -8 : int(sizeof(A)); }
template <class... A> int sizes(void (*)(A...), int* out) { int n = 0; ((out[n++] = size<std::decay_t<A>>()), ...); return n; }

int launch(const std::function<void()>& body, dim3 grid, dim3 block, size_t shared_bytes, unsigned order);
}  // namespace host

// what Python calls: one function to launch each kernel, and one to ask for its parameters
#define EXPORT(NAME)                                                                                          \
  extern "C" int launch_##NAME(const unsigned* g, const unsigned* b, size_t shared, unsigned order, void** a) { \
    return host::launch(host::bound(NAME, a), {g[0], g[1], g[2]}, {b[0], b[1], b[2]}, shared, order);          \
  }                                                                                                           \
  extern "C" int sizes_##NAME(int* out) { return host::sizes(NAME, out); }

template <class T> T __shfl_sync(unsigned, T v, int source, int = 32) { return host::exchange(v, source); }
template <class T> T __shfl_xor_sync(unsigned, T v, int mask, int = 32) { return host::exchange(v, host::lane() ^ mask); }

template <class T> T __ldg(const T* p) { return *p; }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
template <class T> T atomicAdd(T* p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
template <class To, class From> To as(From from) { To to; static_assert(sizeof to == sizeof from); std::memcpy(&to, &from, sizeof to); return to; }
inline float __uint_as_float(unsigned u) { return as<float>(u); }
inline unsigned __float_as_uint(float f) { return as<unsigned>(f); }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  uint64_t both = uint64_t(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}
