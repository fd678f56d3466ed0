// pairwise_cosine: cos [l, n, n] of the rows of e [l, n, d], and its gradient.
#include "cpu/cosine.h"

namespace pamkd {
namespace {

constexpr const char* kOp = "pairwise_cosine";

Tensor forward(const Tensor& e_) {
  STD_TORCH_CHECK(e_.dim() == 3, kOp, ": embeddings have shape ", shape_of(e_), "; needed is [L, N, D]");
  const Tensor e = dense(e_);
  const int64_t l = e.size(0), n = e.size(1), d = e.size(2);
  return dispatch_floating(kOp, e, [&](auto zero) {
    using T = decltype(zero);
    const Tensor unit = torch::stable::empty_like(e), inverse = torch::stable::new_empty(e, {l * n});
    normalise(kOp, e.const_data_ptr<T>(), unit.mutable_data_ptr<T>(), inverse.mutable_data_ptr<T>(), l * n, d);
    return torch::stable::matmul(unit, torch::stable::transpose(unit, 1, 2));
  });
}

// grad_e_i = (sum_j (g_ij + g_ji) unit_j - [sum_j (g_ij + g_ji) cos_ij] unit_i) / |e_i|
Tensor backward(const Tensor& grad_, const Tensor& e_, const Tensor& cosine_) {
  const Tensor e = dense(e_), grad = dense(grad_), cosine = dense(cosine_);
  check_same("pairwise_cosine_backward", "grad", grad, e);
  const int64_t l = e.size(0), n = e.size(1), d = e.size(2);
  return dispatch_floating("pairwise_cosine_backward", e, [&](auto zero) {
    using T = decltype(zero);
    const Tensor unit = torch::stable::empty_like(e), inverse = torch::stable::new_empty(e, {l * n});
    normalise(kOp, e.const_data_ptr<T>(), unit.mutable_data_ptr<T>(), inverse.mutable_data_ptr<T>(), l * n, d);
    const Tensor both = torch::stable::new_empty(grad, {l, n, n}), self = torch::stable::new_empty(e, {l * n});
    const T *g = grad.const_data_ptr<T>(), *c = cosine.const_data_ptr<T>(), *u = unit.const_data_ptr<T>();
    const T* inv = inverse.const_data_ptr<T>();
    T *b = both.mutable_data_ptr<T>(), *s = self.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, l * n, 1 + 16384 / (n + 1), [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        const int64_t base = row / n * n * n, i = row % n;
        double total = 0;
        for (int64_t j = 0; j < n; ++j) {
          const T w = g[base + i * n + j] + g[base + j * n + i];
          b[base + i * n + j] = w;
          total += double(w) * double(c[base + i * n + j]);
        }
        s[row] = T(total);
      }
    });
    Tensor out = torch::stable::matmul(both, unit);
    T* o = out.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, l * n, 1 + 16384 / (d + 1), [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) {
        const T scale = inv[row] < 0 ? -inv[row] : inv[row], project = inv[row] < 0 ? T(0) : s[row];
        for (int64_t k = 0; k < d; ++k) o[row * d + k] = (o[row * d + k] - project * u[row * d + k]) * scale;
      }
    });
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("pairwise_cosine", TORCH_BOX(&forward));
  m.impl("pairwise_cosine_backward", TORCH_BOX(&backward));
}

}  // namespace pamkd
