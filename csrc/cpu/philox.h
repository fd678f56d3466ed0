// Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011): random bits as a function of a counter.
#pragma once

#include <cstdint>

#include "cpu/vec.h"

namespace pamkd {

// The four words of each of N counters become random ones. A word is the low half of a 64-bit integer or, U being a vector of them, of
// each; what the high halves hold is not read. A::product(x, m): the 64-bit products of low halves; A::high(x): high halves where low
// ones were.
template <class A, class U, int N>
PAMKD_INLINE void philox(U (&counters)[N][4], uint64_t key) {
  uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++, low += 0x9E3779B9u, high += 0xBB67AE85u)
#pragma GCC unroll 4
    for (U(&word)[4] : counters) {
      const U first = A::product(word[0], 0xD2511F53u), second = A::product(word[2], 0xCD9E8D57u);
      word[0] = A::high(second) ^ word[1] ^ uint64_t(low);
      word[1] = second;
      word[2] = A::high(first) ^ word[3] ^ uint64_t(high);
      word[3] = first;
    }
}

}  // namespace pamkd
