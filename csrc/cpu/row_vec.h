// Whole rows as vectors of the widest registers, for kernel files on embeddings only.
#pragma once

#include <cstdint>
#include <type_traits>

#define PAMKD_INLINE inline __attribute__((always_inline))

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int64_t kChunk = 512;  // columns of a row that stay in the first-level cache

template <class T>
struct Vector {
  typedef T value __attribute__((vector_size(kBytes)));
  typedef T unaligned __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using V = typename Vector<T>::value;
template <class T>
constexpr int kLanes = kBytes / sizeof(T);

template <class T>
PAMKD_INLINE V<T> load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}

template <class T>
PAMKD_INLINE void store(T* p, V<T> v) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(p) = v;
}

// The sums of the lanes of four vectors. Vectors are halved to 16 bytes first.
template <class W>
PAMKD_INLINE auto halved(W v) {
  using T = std::remove_reference_t<decltype(v[0])>;
  constexpr int lanes = sizeof(W) / sizeof(T);
  if constexpr (sizeof(W) == 16) {
    return v;
  } else if constexpr (lanes == 16) {
    return halved(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else if constexpr (lanes == 8) {
    return halved(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  } else {
    return halved(__builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3));
  }
}

PAMKD_INLINE void four_sums(V<float> a_, V<float> b_, V<float> c_, V<float> d_, float* out) {
  const auto a = halved(a_), b = halved(b_), c = halved(c_), d = halved(d_);
  const auto ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const auto cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const auto sums = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  __builtin_memcpy(out, &sums, sizeof sums);
}

PAMKD_INLINE void four_sums(V<double> a_, V<double> b_, V<double> c_, V<double> d_, double* out) {
  const auto a = halved(a_), b = halved(b_), c = halved(c_), d = halved(d_);
  const auto ab = __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
  const auto cd = __builtin_shufflevector(c, d, 0, 2) + __builtin_shufflevector(c, d, 1, 3);
  __builtin_memcpy(out, &ab, sizeof ab);
  __builtin_memcpy(out + 2, &cd, sizeof cd);
}

// out[r * stride + c] (+)= <a[r], b[c]> over d columns.
template <class T, int R, int C>
PAMKD_INLINE void products(const T* const* a, const T* const* b, int64_t d, bool add, T* out, int64_t stride) {
  V<T> acc[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) acc[r][c] = V<T>{};
  int64_t k = 0;
  for (; k + kLanes<T> <= d; k += kLanes<T>) {
    V<T> left[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) left[r] = load(a[r] + k);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const V<T> right = load(b[c] + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) acc[r][c] += left[r] * right;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    T sums[4];
    four_sums(acc[r][0], C > 1 ? acc[r][1 % C] : V<T>{}, C > 2 ? acc[r][2 % C] : V<T>{}, C > 3 ? acc[r][3 % C] : V<T>{}, sums);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      for (int64_t tail = k; tail < d; tail++) sums[c] += a[r][tail] * b[c][tail];
      T* place = out + r * stride + c;
      *place = add ? *place + sums[c] : sums[c];
    }
  }
}

PAMKD_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace PAMKD_LEVEL
}  // namespace pamkd
