// BatchNorm over blocked maps: statistics of the batch, and the coefficients of its input gradient.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/memory.h"
#include "cpu/passes.h"

namespace pamkd {

// Moments of `slots` maps, image by image; combined in double by Chan's rule, so that the deviation of the mean counts.
template <class T>
class Moments {
 public:
  Moments(const PassKernels<T>& pass, Index n, Index groups, Index slots)
      : pass_(pass), n_(n), groups_(groups), lanes_(groups * kBlock), values_(slots * n * 2 * groups * kBlock) {}

  void take(Index slot, Index image, const T* map, Index pixels) const {
    double* at = of(slot, image);
    pass_.moments(map, groups_, pixels, at, at + lanes_);
  }

  // Mean, 1 / sqrt(variance + eps) and, where it is given, the (biased) variance of every channel.
  void finish(Index slot, Index pixels, double eps, T* mean, T* scale, T* variance = nullptr) const {
    for (Index c = 0; c < lanes_; c++) {
      double total = 0, squares = 0;
      for (Index i = 0; i < n_; i++) total += of(slot, i)[c];
      total /= n_;
      for (Index i = 0; i < n_; i++) {
        const double shift = of(slot, i)[c] - total;
        squares += of(slot, i)[lanes_ + c] + pixels * shift * shift;
      }
      squares /= double(n_) * pixels;
      mean[c] = T(total);
      scale[c] = T(1 / std::sqrt(squares + eps));
      if (variance) variance[c] = T(squares);
    }
  }

 private:
  double* of(Index slot, Index image) const { return values_.get() + (slot * n_ + image) * 2 * lanes_; }

  const PassKernels<T>& pass_;
  const Index n_, groups_, lanes_;
  Buffer<double> values_;
};

// Coefficients of a BatchNorm's input gradient: weight * d(out) / d(z) . g = a * (g - g_mean) + b * (z - mean), from the sums
// over the batch of g and of g * (z - mean).
template <class T>
struct NormInput {
  std::vector<T> a, b, g_mean;

  // weight(channel): what multiplies the normalised value.
  template <class W>
  NormInput(Index lanes, const W& weight, const T* scale, const double* sum, const double* dot, double count)
      : a(lanes), b(lanes), g_mean(lanes) {
    for (Index i = 0; i < lanes; i++) {
      const double s = scale[i], w = weight(i);
      a[i] = T(w * s);
      b[i] = T(-w * s * s * s * dot[i] / count);
      g_mean[i] = T(sum[i] / count);
    }
  }
};

}  // namespace pamkd
