// What is drawn inside one mixed cell: the numbers that pamkd/reference/disturbance.py defines.
#pragma once

#include <stdexcept>
#include <type_traits>
#include <vector>

#include "cpu/cell_plan.h"
#include "cpu/draws.h"
#include "cpu/philox.h"

namespace pamkd {

// Disturbance.encode(): probabilities are so many of 2^32.
struct DrawSpec {
  uint64_t seed = 0;
  int64_t first = 0, skip_dropout = 0, drop_path = 0;

  DrawSpec() = default;
  explicit DrawSpec(const std::vector<int64_t>& code) {
    const auto probability = [](int64_t p) { return p >= 0 && p < int64_t(1) << 32; };
    if (code.size() != 4 || code[1] < 0 || code[1] >= int64_t(1) << 31 || !probability(code[2]) || !probability(code[3]))
      throw std::invalid_argument("disturbed_cell: draws are a seed, the first image and two probabilities in parts of 2^32");
    seed = uint64_t(code[0]), first = code[1], skip_dropout = code[2], drop_path = code[3];
  }
};

template <class T>
class CellDraws {
 public:
  CellDraws(const CellPlan& plan, const DrawSpec& drawn)
      : plan_(plan), drawn_(drawn), n_(plan.n), kept_(plan.lanes, T(1 / (1 - drawn.skip_dropout * 0x1p-32))) {
    if (!drawn.drop_path) return;
    for (size_t edge = 0; edge < plan.spec.edges.size(); edge++)
      for (Index i = 0; i < n_; i++) {
        uint64_t counter[1][4] = {{0, 0, uint64_t(drawn.first + i), use(edge, kPath)}};
        philox<Halves>(counter, drawn.seed);
        masks_.push_back(uint32_t(counter[0][0]) < uint64_t(drawn.drop_path) ? T(0) : T(1 / (1 - drawn.drop_path * 0x1p-32)));
      }
  }

  // Drop-path: the factor of an edge in an image.
  bool masked() const { return !masks_.empty(); }
  T mask(Index edge, Index image) const { return masked() ? masks_[edge * n_ + image] : T(1); }

  bool is_noise(Index edge, Index column) const { return op(edge, column) == Op::noise; }
  // A skip connection with dropout; `kept` is the factor of its values that are not dropped, in every channel.
  bool drops(Index edge, Index column) const {
    return drawn_.skip_dropout && op(edge, column) == Op::skip && plan_.spec.edges[edge].stride == 1;
  }
  bool draws(Index edge, Index column) const { return is_noise(edge, column) || drops(edge, column); }
  const T* kept() const { return kept_.data(); }

  // y += weight * what a candidate that draws gives in one image; x: the blocked state, or in its place a gradient.
  void mix(Index edge, Index column, Index image, T weight, const T* x, T* y) const {
    std::vector<T> scale(plan_.lanes);
    for (Index c = 0; c < plan_.c; c++) scale[c] = is_noise(edge, column) ? weight : weight * kept_[c];  // padding channels stay 0
    if (is_noise(edge, column))
      kernels_.mix_noise(y, scale.data(), at(edge, kNoise, image), plan_.groups, plan_.node_pixels());
    else
      kernels_.mix_kept(y, x, scale.data(), uint32_t(drawn_.skip_dropout), at(edge, kSkip, image), plan_.groups, plan_.node_pixels());
  }

  // sums += sum g * (what it gives, but for the factor `kept`)
  void dot(Index edge, Index column, Index image, const T* g, const T* x, T* sums) const {
    if (is_noise(edge, column))
      kernels_.dot_noise(g, sums, at(edge, kNoise, image), plan_.groups, plan_.node_pixels());
    else
      kernels_.dot_kept(g, x, sums, uint32_t(drawn_.skip_dropout), at(edge, kSkip, image), plan_.groups, plan_.node_pixels());
  }

 private:
  enum Kind { kNoise, kSkip, kPath };
  struct Halves {
    static uint64_t product(uint64_t x, uint32_t m) { return (x & 0xffffffffu) * m; }
    static uint64_t high(uint64_t x) { return x >> 32; }
  };
  static uint32_t use(Index edge, Kind kind) { return uint32_t(3 * edge + kind); }
  Draw at(Index edge, Kind kind, Index image) const { return {drawn_.seed, uint32_t(drawn_.first + image), use(edge, kind)}; }
  Op op(Index edge, Index column) const { return plan_.spec.edges[edge].candidates[column].op; }
  static const DrawKernels<T>& kernels() {
    if constexpr (std::is_same_v<T, float>)
      return PAMKD_PICK(draws_float)();
    else
      return PAMKD_PICK(draws_double)();
  }

  const CellPlan& plan_;
  const DrawSpec drawn_;
  const Index n_;
  const DrawKernels<T>& kernels_ = kernels();
  const std::vector<T> kept_;
  std::vector<T> masks_;  // [edges, n]
};

}  // namespace pamkd
