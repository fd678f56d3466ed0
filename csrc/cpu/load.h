// Loads and stores of vec.h's vectors, for kernel files only.
#pragma once

#include "cpu/vec.h"

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

template <class T>
using V = typename VecOf<T>::value;

template <class T>
PAMKD_INLINE V<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::type*>(p);
}

template <class T>
PAMKD_INLINE void store(T* p, V<T> v) {
  *reinterpret_cast<typename VecOf<T>::type*>(p) = v;
}

// What the convolution kernels compute with: one vector, or two side by side where a register holds them.
template <class T>
struct One {
  using type = V<T>;
  static constexpr int vectors = 1;
  static PAMKD_INLINE type load(const T* p, Index) { return PAMKD_LEVEL::load(p); }  // the vectors at p and p + next
  static PAMKD_INLINE type adjacent(const T* p) { return PAMKD_LEVEL::load(p); }
  static PAMKD_INLINE type both(V<T> v) { return v; }
  static PAMKD_INLINE type first(V<T> v) { return v; }  // and zeros
  static PAMKD_INLINE V<T> sum(type v) { return v; }
  static PAMKD_INLINE void store(T* p, Index, type v) { PAMKD_LEVEL::store(p, v); }
};

template <class T>
struct WidestOf {
  using type = One<T>;
};

#if defined(__AVX512F__)
struct Two {
  typedef float type __attribute__((vector_size(64)));
  typedef float unaligned __attribute__((vector_size(64), aligned(4), may_alias));
  static constexpr int vectors = 2;
  static PAMKD_INLINE type join(V<float> a, V<float> b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  static PAMKD_INLINE type load(const float* p, Index next) { return join(PAMKD_LEVEL::load(p), PAMKD_LEVEL::load(p + next)); }
  static PAMKD_INLINE type adjacent(const float* p) { return *reinterpret_cast<const unaligned*>(p); }
  static PAMKD_INLINE type both(V<float> v) { return join(v, v); }
  static PAMKD_INLINE type first(V<float> v) { return join(v, V<float>{}); }
  static PAMKD_INLINE V<float> low(type v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
  static PAMKD_INLINE V<float> high(type v) { return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }
  static PAMKD_INLINE V<float> sum(type v) { return low(v) + high(v); }
  static PAMKD_INLINE void store(float* p, Index next, type v) {
    PAMKD_LEVEL::store(p, low(v));
    PAMKD_LEVEL::store(p + next, high(v));
  }
};

template <>
struct WidestOf<float> {
  using type = Two;
};
#endif

template <class T>
using Widest = typename WidestOf<T>::type;

}  // namespace
}  // namespace PAMKD_LEVEL
}  // namespace pamkd
