// group_min_similarity: the smallest cosine within each group of rows, the pair that has it, and the gradient.
#include <tuple>

#include "cpu/grs.h"

namespace pamkd {
namespace {

using torch::stable::new_empty;

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& e_, const Tensor& groups_) {
  constexpr const char* op = "group_min_similarity";
  check_shape(op, "embeddings", e_, {-1, -1, -1});
  check_groups(op, "groups", groups_);
  const Tensor e = dense(e_), groups = dense(groups_);
  const int64_t l = e.size(0), n = e.size(1), count = groups.size(0);
  const Tensor similarity = new_empty(e, {l, count}), pairs = new_empty(groups, {l, count, 2}), scale = new_empty(e, {l, n});
  dispatch_floating(op, e, [&](auto zero) {
    using T = decltype(zero);
    auto sets = grs::sets_of<T>(e, scale);
    grs::scale_rows(sets, n, op, "embeddings");
    const Groups given{{groups.const_data_ptr<int64_t>()}, 0, count, groups.size(1)};
    grs::min_similarities(sets, n, given, op, similarity.mutable_data_ptr<T>(), pairs.mutable_data_ptr<int64_t>());
  });
  return {similarity, pairs, scale};
}

Tensor backward(const Tensor& grad_, const Tensor& e_, const Tensor& similarity_, const Tensor& pairs_, const Tensor& scale_) {
  constexpr const char* op = "group_min_similarity_backward";
  check_shape(op, "embeddings", e_, {-1, -1, -1});
  const Tensor e = dense(e_), grad = dense(grad_), similarity = dense(similarity_), pairs = dense(pairs_), scale = dense(scale_);
  const int64_t l = e.size(0), n = e.size(1), d = e.size(2), count = grad.size(1);
  check_same(op, "grad", grad, e);
  check_shape(op, "grad", grad, {l, -1});
  check_shape(op, "similarity", similarity, {l, count});
  check_shape(op, "pairs", pairs, {l, count, 2});
  check_shape(op, "scale", scale, {l, n});
  const Tensor gradient = new_empty(e, {l, n, d});
  dispatch_floating(op, e, [&](auto zero) {
    using T = decltype(zero);
    const auto sets = grs::sets_of<T>(e, scale);
    for (int64_t b = 0; b < l; b++)
      grs::min_similarity_gradient(sets[b], n, count, grad.const_data_ptr<T>() + b * count, similarity.const_data_ptr<T>() + b * count,
                                   pairs.const_data_ptr<int64_t>() + b * count * 2, op, gradient.mutable_data_ptr<T>() + b * n * d);
  });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("group_min_similarity", TORCH_BOX(&forward));
  m.impl("group_min_similarity_backward", TORCH_BOX(&backward));
}

}  // namespace pamkd
