// The fast engine: a block is an OS thread, and its CUDA threads are fibers on it, switched at barriers and shuffles.
//
// So `thread_local` means just what `__shared__` means. Blocks run one after another, and all shared memory is NaN when
// one begins: a kernel that reads what nobody wrote cannot come out right by luck.
// Fibers run in the order that is asked for; a kernel that is right gives the same bits in every one.
#pragma once
#define __shared__ thread_local /* in a function, that is static, too */
#include "cuda_host.h"
#include <cstdlib>
#include <link.h>
#include <mutex>
#if !defined(__x86_64__) || defined(PORTABLE_SWITCH)
#include <ucontext.h>
#endif

inline thread_local __attribute__((aligned(128))) unsigned char smem[232448];  // what `extern __shared__ ... smem[]` means

namespace host {
#if defined(__x86_64__) && !defined(PORTABLE_SWITCH)
typedef void* Context;  // a saved stack pointer; the registers that a call must keep lie on that stack
extern "C" void fiber_switch(Context* from, Context to);
asm(R"(.text
.local fiber_switch
fiber_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
inline void switch_to(Context& from, Context& to) { fiber_switch(&from, to); }
inline void prepare(Context& c, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t(15));
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  c = top;
}
#else
typedef ucontext_t Context;  // other processors, and AddressSanitizer, which must know of it; 5 to 10 times slower
inline void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
inline void prepare(Context& c, char* stack, size_t size, void (*entry)()) {
  getcontext(&c);
  c.uc_stack.ss_sp = stack;
  c.uc_stack.ss_size = size;
  c.uc_link = nullptr;
  makecontext(&c, entry, 0);
}
#endif

enum Waiting { NO, FOR_WARP, FOR_BLOCK };
struct Fiber { Context context; uint3 index; Waiting waiting; bool done; uint64_t offered[2]; int exchanges; };
struct Block { std::vector<Fiber> fibers; Context scheduler; int now; const std::function<void()>* body; };
inline thread_local Block* block = nullptr;
inline thread_local dim3 grid_dim, block_dim;
inline thread_local uint3 block_index;

inline void wait(Waiting what) {
  Fiber& fiber = block->fibers[block->now];
  fiber.waiting = what;
  switch_to(fiber.context, block->scheduler);
}
inline void entry() {
  (*block->body)();
  block->fibers[block->now].done = true;
  wait(NO);
}

// 0 ascending, 1 descending, else a seed: random, and anew in every round
inline const std::vector<int>& in_order(int n, unsigned order, std::mt19937& random, std::vector<int>& numbers) {
  numbers.resize(n);
  for (int i = 0; i < n; i++) numbers[i] = order == 1 ? n - 1 - i : i;
  if (order > 1) std::shuffle(numbers.begin(), numbers.end(), random);
  return numbers;
}

enum Outcome { FINE, NOBODY_CAN_GO_ON, LEFT_BEFORE_A_BARRIER };
const size_t STACK = (64 << 10) + 17 * 64;  // not a power of two: all stacks' ends would fight for one place in the cache

inline Outcome run_block(const std::function<void()>& body, char* stacks, unsigned order) {
  int n = count(block_dim), left = n;
  Block mine{std::vector<Fiber>(n), {}, 0, &body};
  block = &mine;
  for (int i = 0; i < n; i++) {
    mine.fibers[i].index = unflatten(i, block_dim);
    prepare(mine.fibers[i].context, stacks + i * STACK, STACK, entry);
  }
  std::mt19937 random(order + 977 * block_index.x);
  auto release = [&](int first, int last, Waiting what) {  // let go if all that live wait for the same
    int alive = 0;
    for (int i = first; i < last; i++)
      if (!mine.fibers[i].done && ++alive && mine.fibers[i].waiting != what) return false;
    for (int i = first; i < last; i++) mine.fibers[i].waiting = NO;
    return alive > 0;
  };
  std::vector<int> turns;
  while (left) {
    bool ran = false, released = false;
    for (int i : in_order(n, order, random, turns)) {
      Fiber& fiber = mine.fibers[i];
      if (fiber.done || fiber.waiting != NO) continue;
      mine.now = i;
      switch_to(mine.scheduler, fiber.context);
      ran = true;
      left -= fiber.done;
    }
    for (int first = 0; first < n; first += 32) released |= release(first, min(n, first + 32), FOR_WARP);
    if (release(0, n, FOR_BLOCK)) {
      released = true;
      if (left < n) return LEFT_BEFORE_A_BARRIER;
    }
    if (left && !ran && !released) return NOBODY_CAN_GO_ON;
  }
  return FINE;
}

// All of this library's thread_local memory, so all shared memory, becomes NaN before a block begins.
struct Memory { char *first, *last; };
inline int find_ours(dl_phdr_info* info, size_t, void* found) {
  char *first = static_cast<char*>(info->dlpi_tls_data), *here = reinterpret_cast<char*>(smem);
  for (int i = 0; i < info->dlpi_phnum; i++) {
    char* last = first + info->dlpi_phdr[i].p_memsz;
    if (info->dlpi_phdr[i].p_type != PT_TLS || !first || here < first || here >= last) continue;
    *static_cast<Memory*>(found) = {first, last};
    return 1;
  }
  return 0;
}
inline void poison(size_t shared_bytes) {
  Memory ours{};
  *const_cast<volatile unsigned char*>(smem) = 0;  // a thread has its copy of this memory only once it has touched it
  if (!dl_iterate_phdr(find_ours, &ours)) std::abort();
  char *smem_first = reinterpret_cast<char*>(smem), *smem_last = smem_first + sizeof smem;
  std::memset(ours.first, 0xFF, smem_first - ours.first);
  std::memset(smem_first, 0xFF, min(sizeof smem, shared_bytes + 1024));
  std::memset(smem_last, 0xFF, ours.last - smem_last);
}

inline int launch(const std::function<void()>& body, dim3 grid, dim3 threads, size_t shared_bytes, unsigned order) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  static std::vector<char> stacks;
  stacks.resize(max(stacks.size(), count(threads) * STACK));
  Outcome outcome = FINE;
  std::thread([&] {
    std::mt19937 random(order);
    std::vector<int> turns;
    for (int i : in_order(count(grid), order, random, turns)) {
      poison(shared_bytes);
      grid_dim = grid, block_dim = threads, block_index = unflatten(i, grid);
      if (Outcome how = run_block(body, stacks.data(), order)) outcome = how;
    }
  }).join();
  return outcome;
}

inline int lane() { return block->now & 31; }
template <class T> T exchange(T value, int source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
  int me = block->now, turn = block->fibers[me].exchanges++ % 2;  // two places: one may still be read when the next is offered
  std::memcpy(&block->fibers[me].offered[turn], &value, sizeof value);
  wait(FOR_WARP);
  std::memcpy(&value, &block->fibers[(me & ~31) | (source & 31)].offered[turn], sizeof value);
  return value;
}
}  // namespace host
#define threadIdx (host::block->fibers[host::block->now].index)
#define blockIdx host::block_index
#define blockDim host::block_dim
#define gridDim host::grid_dim
inline void __syncthreads() { host::wait(host::FOR_BLOCK); }
inline void __syncwarp(unsigned = ~0u) { host::wait(host::FOR_WARP); }
