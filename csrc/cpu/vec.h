// Eight channels of one pixel as a compiler vector. Maps are blocked: [channels / 8][h][w][8], the last block padded
// with zero channels, so that every pixel of every channel count is whole vectors.
#pragma once

namespace pamkd {

using Index = long;
constexpr Index kBlock = 8;

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kBlock * sizeof(T)), aligned(alignof(T)), may_alias));
  typedef T value __attribute__((vector_size(kBlock * sizeof(T))));
};

}  // namespace pamkd

#define PAMKD_INLINE inline __attribute__((always_inline))
