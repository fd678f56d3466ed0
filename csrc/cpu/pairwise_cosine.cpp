// pairwise_cosine: cos [l, n, n] of the rows of e [l, n, d], and its gradient.
#include <tuple>

#include "cpu/grs.h"

namespace pamkd {
namespace {

using torch::stable::new_empty;

std::tuple<Tensor, Tensor> forward(const Tensor& e_) {
  constexpr const char* op = "pairwise_cosine";
  check_shape(op, "embeddings", e_, {-1, -1, -1});
  const Tensor e = dense(e_);
  const int64_t l = e.size(0), n = e.size(1);
  const Tensor cosine = new_empty(e, {l, n, n}), scale = new_empty(e, {l, n});
  dispatch_floating(op, e, [&](auto zero) {
    using T = decltype(zero);
    auto sets = grs::sets_of<T>(e, scale);
    grs::scale_rows(sets, n, op, "embeddings");
    for (int64_t b = 0; b < l; b++) grs::cosines(sets[b], n, true, cosine.mutable_data_ptr<T>() + b * n * n);
  });
  return {cosine, scale};
}

// With w_ij = (g_ij + g_ji) scale_j off the diagonal and w_ii less scale_i sum_j (g_ij + g_ji) cos_ij, the gradient of
// row i is scale_i sum_j w_ij e_j.
Tensor backward(const Tensor& grad_, const Tensor& e_, const Tensor& cosine_, const Tensor& scale_) {
  constexpr const char* op = "pairwise_cosine_backward";
  check_shape(op, "embeddings", e_, {-1, -1, -1});
  const Tensor e = dense(e_), grad = dense(grad_), cosine = dense(cosine_), scale = dense(scale_);
  const int64_t l = e.size(0), n = e.size(1), d = e.size(2);
  check_same(op, "grad", grad, e);
  check_shape(op, "grad", grad, {l, n, n});
  check_shape(op, "cosine", cosine, {l, n, n});
  check_shape(op, "scale", scale, {l, n});
  const Tensor gradient = new_empty(e, {l, n, d});
  dispatch_floating(op, e, [&](auto zero) {
    using T = decltype(zero);
    const auto sets = grs::sets_of<T>(e, scale);
    const auto weight = std::make_unique_for_overwrite<T[]>(static_cast<size_t>(n * n));
    for (int64_t b = 0; b < l; b++) {
      const T *g = grad.const_data_ptr<T>() + b * n * n, *c = cosine.const_data_ptr<T>() + b * n * n, *s = sets[b].scale;
      torch::stable::parallel_for(0, n, grain(4 * n), [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; i++) {
          double own = 0;
          for (int64_t j = 0; j < n; j++) {
            const T both = g[i * n + j] + g[j * n + i];
            weight[i * n + j] = both * s[j];
            own += static_cast<double>(both) * c[i * n + j];
          }
          if (!grs::clamped(s[i])) weight[i * n + i] -= static_cast<T>(own * s[i]);
        }
      });
      grs::weighted_rows(sets[b], n, weight.get(), gradient.mutable_data_ptr<T>() + b * n * d);
    }
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("pairwise_cosine", TORCH_BOX(&forward));
  m.impl("pairwise_cosine_backward", TORCH_BOX(&backward));
}

}  // namespace pamkd
