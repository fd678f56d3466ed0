// Pairs of groups of distinct rows, a function of the seed alone.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace pamkd {

// splitmix64 (Steele, Lea, Flood 2014): a counter through a mixing function, the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  // Uniform in [0, bound): the high half of a 128-bit product, with Lemire's rejection of the biased part.
  uint64_t below(uint64_t bound) {
    for (;;) {
      const unsigned __int128 product = static_cast<unsigned __int128>(next()) * bound;
      if (static_cast<uint64_t>(product) >= -bound % bound) return static_cast<uint64_t>(product >> 64);
    }
  }

 private:
  uint64_t state_;
};

// rows [pairs, count]: each line `count` distinct rows of `batch`, every ordered choice equally likely.
inline void sample_rows(int64_t batch, int64_t count, int64_t pairs, uint64_t seed, int64_t* rows) {
  Random random(seed);
  std::vector<int64_t> deck(batch);
  std::iota(deck.begin(), deck.end(), int64_t{0});
  for (int64_t p = 0; p < pairs; ++p)
    for (int64_t i = 0; i < count; ++i) {
      // A partial Fisher-Yates shuffle; starting from the last pair's order changes no probability.
      std::swap(deck[i], deck[i + static_cast<int64_t>(random.below(static_cast<uint64_t>(batch - i)))]);
      rows[p * count + i] = deck[i];
    }
}

}  // namespace pamkd
