// CUDA C++ device code on the CPU: every thread of a block is a fiber that runs until it waits. One block at a time, blocks
// and threads in random order, so that code which lacks a barrier meets an order in which that shows. Shared memory is
// filled with NaN before each block and, under AddressSanitizer, ends where its launch said. Threads that wait at different
// barriers, or return while others wait, end the program with status 3.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// The two storage types, with the conversions of cuda_fp16.h and cuda_bf16.h (round to nearest even).
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float __bfloat162float(__nv_bfloat16 value) { return float_of(uint32_t(value.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Scaling by 2^112 moves the exponent's bias from 15 to 127, denormals included.
  return float_of(bits_of(float_of(rest << 13) * 0x1p112f) | sign);
}

inline __half __float2half_rn(float value) {
  const uint32_t sign = bits_of(value) >> 16 & 0x8000;
  const float size = float_of(bits_of(value) & 0x7fffffff);
  if (size != size) return {0x7fff};
  if (size >= 65520.f) return {uint16_t(sign | 0x7c00)};
  if (size < 0x1p-14f) return {uint16_t(sign | uint32_t(std::nearbyint(size * 0x1p24f)))};
  const uint32_t bits = bits_of(size);
  return {uint16_t(sign | (((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10)))};
}

namespace cuda_host {

[[noreturn]] inline void fail(const std::string& message) {
  std::fprintf(stderr, "cuda_host: %s\n", message.c_str());
  std::_Exit(3);  // on a fiber's stack nothing may be unwound
}

struct Fiber {
  static constexpr size_t kStack = 1 << 18;
  enum Wait { ready, at_block, at_warp, returned };
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Wait wait;
  int line;       // of the barrier
  unsigned mask;  // of the warp's lanes that must arrive
  uint64_t slot;  // what the thread shows its warp
  void* fake = nullptr;
};

class Machine {
 public:
  // Barriers on these lines are not there: what a test calls to see that each is needed.
  std::vector<int> removed;

  void seed(unsigned value) { random_.seed(value); }

  // kernel() for every thread; `memory` of `bytes` is the block's shared memory, of a buffer of `capacity`.
  void launch(dim3 grid, int threads, unsigned char* memory, size_t bytes, size_t capacity, const std::function<void()>& kernel) {
    if (bytes > capacity) fail("the launch asks for more shared memory than a block has");
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory, capacity);
    __asan_poison_memory_region(memory + bytes, capacity - bytes);
#endif
    gridDim = grid, blockDim = dim3(threads), kernel_ = &kernel;
    while (int(fibers_.size()) < threads) fibers_.push_back(std::make_unique<Fiber>());
    count_ = threads;
    std::vector<unsigned> blocks(size_t(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); i++) blocks[i] = unsigned(i);
    std::shuffle(blocks.begin(), blocks.end(), random_);
    for (const unsigned block : blocks) {
      blockIdx = dim3(block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y);
      std::memset(memory, 0xff, bytes);
      run_block();
    }
  }

  void wait_block(int line) {
    if (std::find(removed.begin(), removed.end(), line) == removed.end()) wait(Fiber::at_block, line, 0);
  }

  // Shows `value` to the warp and returns what lane `from` shows.
  template <class T>
  T exchange(unsigned mask, T value, int from, int line) {
    const int first = current_ / 32 * 32, lane = current_ % 32;
    if (!(mask >> lane & 1)) fail("a lane takes part in a shuffle whose mask leaves it out, line " + std::to_string(line));
    if (from < 0 || from >= 32 || !(mask >> from & 1)) from = lane;
    std::memcpy(&fibers_[current_]->slot, &value, sizeof(T));
    wait(Fiber::at_warp, line, mask);
    std::memcpy(&value, &fibers_[first + from]->slot, sizeof(T));
    wait(Fiber::at_warp, -line, mask);  // nobody shows a new value before all have read
    return value;
  }
  int lane() const { return current_ % 32; }

 private:
  void run_block() {
    for (int i = 0; i < count_; i++) start(*fibers_[i]);
    std::vector<int> order;
    for (;;) {
      order.clear();
      for (int i = 0; i < count_; i++)
        if (fibers_[i]->wait == Fiber::ready) order.push_back(i);
      if (order.empty() && !release()) return;
      std::shuffle(order.begin(), order.end(), random_);
      for (const int i : order) resume(i);
    }
  }

  static void start(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get(), fiber.context.uc_stack.ss_size = Fiber::kStack;
    fiber.context.uc_link = nullptr, fiber.wait = Fiber::ready;
    makecontext(&fiber.context, &Machine::enter, 0);
  }

  // Nobody can run on: opens the barriers that are complete. False when all threads have returned.
  bool release() {
    const auto all = [&](int begin, int end, const auto& holds) {
      for (int i = begin; i < end; i++)
        if (!holds(i)) return false;
      return true;
    };
    if (all(0, count_, [&](int i) { return fibers_[i]->wait == Fiber::returned; })) return false;
    const int line = fibers_[0]->line;
    if (all(0, count_, [&](int i) { return fibers_[i]->wait == Fiber::at_block && fibers_[i]->line == line; })) {
      for (int i = 0; i < count_; i++) fibers_[i]->wait = Fiber::ready;
      return true;
    }
    bool any = false;
    for (int i = 0; i < count_; i++) {
      const Fiber& fiber = *fibers_[i];
      if (fiber.wait != Fiber::at_warp) continue;
      const int first = i / 32 * 32, line = fiber.line;
      const unsigned mask = fiber.mask;
      const auto takes_part = [&](int other) { return mask >> (other - first) & 1; };
      const bool complete = all(first, first + 32, [&](int other) {
        return !takes_part(other) || (other < count_ && fibers_[other]->wait == Fiber::at_warp && fibers_[other]->line == line && fibers_[other]->mask == mask);
      });
      if (!complete) continue;
      for (int other = first; other < std::min(first + 32, count_); other++)
        if (takes_part(other)) fibers_[other]->wait = Fiber::ready;
      any = true;
    }
    if (!any) fail("barrier divergence: threads of one block wait at different places, or some have returned" + places());
    return true;
  }

  std::string places() const {
    std::string text;
    for (int i = 0; i < count_; i += 32) {
      const Fiber& fiber = *fibers_[i];
      text += "; thread " + std::to_string(i) + (fiber.wait == Fiber::returned ? " has returned" : " at line " + std::to_string(fiber.line));
    }
    return text;
  }

  void resume(int i) {
    current_ = i;
    threadIdx = dim3(i, 0, 0);
    switch_to(fibers_[i]->context, main_, main_fake_, fibers_[i]->stack.get(), Fiber::kStack);
  }

  void wait(Fiber::Wait kind, int line, unsigned mask) {
    Fiber& fiber = *fibers_[current_];
    fiber.wait = kind, fiber.line = line, fiber.mask = mask;
    switch_to(main_, fiber.context, fiber.fake, main_stack_, main_stack_size_);
  }

  void switch_to(ucontext_t& to, ucontext_t& from, [[maybe_unused]] void*& fake, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake, stack, size);
    swapcontext(&from, &to);
    finish_switch(fake, &from == &main_);
#else
    swapcontext(&from, &to);
#endif
  }

  void finish_switch([[maybe_unused]] void* fake, [[maybe_unused]] bool in_main) {
#if defined(__SANITIZE_ADDRESS__)
    const void* stack;
    size_t size;
    __sanitizer_finish_switch_fiber(fake, &stack, &size);
    if (!in_main) main_stack_ = stack, main_stack_size_ = size;
#endif
  }

  static void enter();

  std::mt19937 random_{0};
  std::vector<std::unique_ptr<Fiber>> fibers_;
  const std::function<void()>* kernel_ = nullptr;
  ucontext_t main_;
  void* main_fake_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_stack_size_ = 0;
  int current_ = 0, count_ = 0;
};

inline Machine machine;

inline void Machine::enter() {
  machine.finish_switch(nullptr, false);
  (*machine.kernel_)();
  machine.wait(Fiber::returned, 0, 0);
}

}  // namespace cuda_host

#define __syncthreads() cuda_host::machine.wait_block(__LINE__)
#define __syncwarp() cuda_host::machine.exchange(~0u, 0, 0, __LINE__)
#define __shfl_sync(mask, value, from) cuda_host::machine.exchange(mask, value, from, __LINE__)
#define __shfl_xor_sync(mask, value, bits) cuda_host::machine.exchange(mask, value, cuda_host::machine.lane() ^ (bits), __LINE__)
#define __shfl_down_sync(mask, value, delta) cuda_host::machine.exchange(mask, value, cuda_host::machine.lane() + (delta), __LINE__)

// Threads switch only where they wait, so plain code is atomic.
template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
