// group_min_similarity: the smallest cosine within each group of rows, the pair that has it, and the gradient.
#include "cpu/cosine.h"

#include <tuple>

namespace pamkd {
namespace {

constexpr const char* kOp = "group_min_similarity";

// A dot product of gathered rows runs at a fraction of a matrix product's rate: measured 3 to 5 times slower each.
constexpr int64_t kGatherCost = 4;

void check_groups(const Tensor& groups, int64_t n) {
  const int64_t* index = groups.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < groups.numel(); ++i)
    STD_TORCH_CHECK(index[i] >= 0 && index[i] < n, kOp, ": group index ", index[i], " is out of range for ", n, " embeddings");
}

// The first smallest of the pairs in row-major order.
template <class T, class Cosine>
void smallest(const int64_t* group, int64_t r, Cosine&& cosine, T* sim, int64_t* pair) {
  T best = cosine(0, 1);
  int64_t p = 0, q = 1;
  for (int64_t i = 0; i < r; ++i)
    for (int64_t j = i + 1; j < r; ++j)
      if (const T value = cosine(i, j); value < best) best = value, p = i, q = j;
  *sim = best, pair[0] = group[p], pair[1] = group[q];
}

std::tuple<Tensor, Tensor> forward(const Tensor& e_, const Tensor& groups_) {
  STD_TORCH_CHECK(e_.dim() == 3, kOp, ": embeddings have shape ", shape_of(e_), "; needed is [L, N, D]");
  STD_TORCH_CHECK(groups_.dim() == 2 && groups_.size(1) >= 2 && groups_.scalar_type() == ScalarType::Long, kOp,
                  ": groups have shape ", shape_of(groups_), "; needed is int64 [G, R] with R of at least 2");
  const Tensor e = dense(e_), groups = dense(groups_);
  const int64_t l = e.size(0), n = e.size(1), d = e.size(2), count = groups.size(0), r = groups.size(1);
  check_groups(groups, n);
  const Tensor sim = torch::stable::new_empty(e, {l, count}), pairs = torch::stable::new_empty(groups, {l, count, 2});
  dispatch_floating(kOp, e, [&](auto zero) {
    using T = decltype(zero);
    const Tensor unit = torch::stable::empty_like(e), inverse = torch::stable::new_empty(e, {l * n});
    normalise(kOp, e.const_data_ptr<T>(), unit.mutable_data_ptr<T>(), inverse.mutable_data_ptr<T>(), l * n, d);
    const int64_t* index = groups.const_data_ptr<int64_t>();
    T* s = sim.mutable_data_ptr<T>();
    int64_t* p = pairs.mutable_data_ptr<int64_t>();
    if (n * n <= kGatherCost * count * (r * (r - 1) / 2)) {
      // Rows of set b against all of set b: the Gram matrix costs n^2 d multiply-adds at the rate of a matrix product.
      for (int64_t b = 0; b < l; ++b) {
        const Tensor set = torch::stable::select(unit, 0, b);
        const Tensor gram = torch::stable::matmul(set, torch::stable::transpose(set, 0, 1));
        const T* c = gram.const_data_ptr<T>();
        torch::stable::parallel_for(0, count, 256, [&](int64_t from, int64_t to) {
          for (int64_t g = from; g < to; ++g) {
            const int64_t* group = index + g * r;
            const auto cosine = [&](int64_t i, int64_t j) { return c[group[i] * n + group[j]]; };
            smallest(group, r, cosine, s + b * count + g, p + 2 * (b * count + g));
          }
        });
      }
      return;
    }
    const GroupCosines<T> kernel = PAMKD_PICK_AS(GroupCosines<T>, group_cosines);
    const T* u = unit.const_data_ptr<T>();
    torch::stable::parallel_for(0, l * count, 1 + 16384 / (r * (r - 1) / 2 * (d + 1)), [&](int64_t from, int64_t to) {
      std::vector<T> cosines(r * (r - 1) / 2);
      for (int64_t g = from; g < to; ++g) {
        const int64_t* group = index + g % count * r;
        kernel(u + g / count * n * d, group, cosines.data(), r, d);
        const auto cosine = [&](int64_t i, int64_t j) { return cosines[i * (2 * r - i - 1) / 2 + j - i - 1]; };
        smallest(group, r, cosine, s + g, p + 2 * g);
      }
    });
  });
  return {sim, pairs};
}

// Each group sends its gradient to its one pair. Entries are sorted by row (stable, so the sum's order is fixed):
// grad_e_i = (sum_pairs g unit_j - [sum_pairs g cos] unit_i) / |e_i|.
Tensor backward(const Tensor& grad_, const Tensor& e_, const Tensor& sim_, const Tensor& pairs_) {
  constexpr const char* op = "group_min_similarity_backward";
  const Tensor e = dense(e_), grad = dense(grad_), sim = dense(sim_), pairs = dense(pairs_);
  check_same(op, "grad", grad, e);
  const int64_t l = e.size(0), n = e.size(1), d = e.size(2), count = grad.size(1);
  const Tensor out = torch::stable::empty_like(e);
  dispatch_floating(op, e, [&](auto zero) {
    using T = decltype(zero);
    const Tensor unit = torch::stable::empty_like(e), inverse = torch::stable::new_empty(e, {l * n});
    normalise(kOp, e.const_data_ptr<T>(), unit.mutable_data_ptr<T>(), inverse.mutable_data_ptr<T>(), l * n, d);
    const GatherGradient<T> kernel = PAMKD_PICK_AS(GatherGradient<T>, gather_gradient);
    std::vector<int64_t> start(n + 1);
    std::vector<int32_t> other(2 * count);
    std::vector<T> weight(2 * count), self(n);
    for (int64_t b = 0; b < l; ++b) {
      const T *g = grad.const_data_ptr<T>() + b * count, *c = sim.const_data_ptr<T>() + b * count;
      const T *u = unit.const_data_ptr<T>() + b * n * d, *inv = inverse.const_data_ptr<T>() + b * n;
      const int64_t* p = pairs.const_data_ptr<int64_t>() + 2 * b * count;
      T* o = out.mutable_data_ptr<T>() + b * n * d;
      start.assign(n + 1, 0);
      self.assign(n, T(0));
      for (int64_t k = 0; k < count; ++k) {
        if (g[k] == T(0)) continue;
        for (int side = 0; side < 2; ++side) {
          STD_TORCH_CHECK(p[2 * k + side] >= 0 && p[2 * k + side] < n, op, ": pair index out of range");
          ++start[p[2 * k + side] + 1];
        }
      }
      for (int64_t i = 0; i < n; ++i) start[i + 1] += start[i];
      std::vector<int64_t> place(start.begin(), start.end() - 1);
      for (int64_t k = 0; k < count; ++k) {
        if (g[k] == T(0)) continue;
        for (int side = 0; side < 2; ++side) {
          const int64_t row = p[2 * k + side], at = place[row]++;
          other[at] = static_cast<int32_t>(p[2 * k + 1 - side]);
          weight[at] = g[k];
          self[row] += g[k] * c[k];
        }
      }
      torch::stable::parallel_for(0, n, 1 + 16384 / (1 + (1 + 2 * count / n) * d), [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i)
          kernel(u, other.data() + start[i], weight.data() + start[i], start[i + 1] - start[i], self[i], u + i * d, inv[i],
                 o + i * d, d);
      });
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("group_min_similarity", TORCH_BOX(&forward));
  m.impl("group_min_similarity_backward", TORCH_BOX(&backward));
}

}  // namespace pamkd
