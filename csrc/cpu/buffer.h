// Aligned memory that an operation needs while it runs.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace pamkd {

// Asks for 2 MB pages under a large buffer: its first touch would otherwise fault once per 4 kB, a tenth of a search step.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t huge = uintptr_t(1) << 21, begin = (reinterpret_cast<uintptr_t>(data) + 4095) & ~uintptr_t(4095);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~uintptr_t(4095);
  if (bytes >= 2 * huge && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Uninitialised aligned memory.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size, bool zero = false) : size_(size) {
    const size_t bytes = (size * sizeof(T) + 63) / 64 * 64 + 64;
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!memory_) throw std::bad_alloc();
    prefer_huge_pages(memory_.get(), bytes);
    if (zero) std::memset(memory_.get(), 0, bytes);
  }
  T* get() const { return memory_.get(); }
  int64_t size() const { return size_; }
  explicit operator bool() const { return bool(memory_); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace pamkd
