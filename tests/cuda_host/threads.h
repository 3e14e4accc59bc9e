// The engine for ThreadSanitizer: every CUDA thread is an OS thread, and what two of them touch without a barrier in
// between is reported with both lines of the .cu file. Blocks run one after another: races between blocks are not seen.
#pragma once
#define __shared__ static
#include "cuda_host.h"
#include <pthread.h>

inline __attribute__((aligned(128))) unsigned char smem[232448];

namespace host {
struct Barrier {
  pthread_barrier_t barrier;
  explicit Barrier(unsigned n) { pthread_barrier_init(&barrier, nullptr, n); }
  ~Barrier() { pthread_barrier_destroy(&barrier); }
  void wait() { pthread_barrier_wait(&barrier); }
};
inline dim3 grid_dim, block_dim;
inline thread_local uint3 block_index, thread_index;
inline thread_local int number;
inline Barrier* whole_block;
inline std::vector<std::unique_ptr<Barrier>> warps;
inline std::vector<uint64_t> offered;

inline int launch(const std::function<void()>& body, dim3 grid, dim3 threads, size_t, unsigned) {
  int n = count(threads);
  grid_dim = grid, block_dim = threads;
  Barrier all(n);
  whole_block = &all;
  offered.assign(n, 0);
  warps.clear();
  for (int first = 0; first < n; first += 32) warps.emplace_back(new Barrier(min(32, n - first)));
  std::vector<std::thread> running;
  for (int t = 0; t < n; t++)
    running.emplace_back([&, t] {
      number = t, thread_index = unflatten(t, threads);
      for (unsigned i = 0; i < count(grid); i++) {
        all.wait();  // everybody is done with the block before
        block_index = unflatten(i, grid);
        body();
      }
    });
  for (auto& thread : running) thread.join();
  return 0;
}

inline int lane() { return number & 31; }
template <class T> T exchange(T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
  std::memcpy(&offered[number], &value, sizeof value);
  warps[number / 32]->wait();
  std::memcpy(&value, &offered[(number & ~31) | (source & 31)], sizeof value);
  warps[number / 32]->wait();
  return value;
}
}  // namespace host
#define threadIdx host::thread_index
#define blockIdx host::block_index
#define blockDim host::block_dim
#define gridDim host::grid_dim
inline void __syncthreads() { host::whole_block->wait(); }
inline void __syncwarp(unsigned = ~0u) { host::warps[host::number / 32]->wait(); }
