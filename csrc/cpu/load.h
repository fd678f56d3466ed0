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

}  // namespace
}  // namespace PAMKD_LEVEL
}  // namespace pamkd
