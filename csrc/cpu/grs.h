// Steps that the operations of group-wise relative similarity share: threads and choices; cosine_rows.h, group_rows.h and hinge_rows.h have the arithmetic.
// No result depends on the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/check.h"
#include "cpu/cosine_rows.h"
#include "cpu/group_rows.h"
#include "cpu/hinge_rows.h"

namespace pamkd::grs {

// The embeddings of one network, [n, d], with 1 / max(norm, 1e-8) of each row.
template <class T>
struct Set {
  const T* e;
  int64_t d;
  T* scale;
  // Where squared norms overflow: the normalised rows [n, d], and then n ones.
  std::shared_ptr<T[]> unit = nullptr;

  const T* rows() const { return unit ? unit.get() : e; }
  const T* scales(int64_t n) const { return unit ? unit.get() + n * d : scale; }
};

// The matrices of a dense [n, d] or [K, n, d] tensor, with scale [K, n].
template <class T>
std::vector<Set<T>> sets_of(const Tensor& embeddings, const Tensor& scale) {
  const int64_t n = embeddings.size(embeddings.dim() - 2), d = embeddings.size(embeddings.dim() - 1);
  std::vector<Set<T>> sets;
  for (int64_t k = 0; k < scale.size(0); k++)
    sets.push_back({embeddings.const_data_ptr<T>() + k * n * d, d, scale.mutable_data_ptr<T>() + k * n});
  return sets;
}

// Fills scale. Raises where an embedding is not finite; op and name say whose.
template <class T>
void scale_rows(std::vector<Set<T>>& sets, int64_t n, const char* op, const char* name);

// cosine [n, n]; both: its lower half too.
template <class T>
void cosines(const Set<T>& set, int64_t n, bool both, T* cosine);

// similarity [L, G], pairs [L, G, 2]. Raises where a row is outside 0 .. n - 1.
template <class T>
void min_similarities(const std::vector<Set<T>>& sets, int64_t n, const Groups& groups, const char* op, T* similarity, int64_t* pairs);

// gradient [n, d] of sum over g of grad[g] similarity[g].
template <class T>
void min_similarity_gradient(const Set<T>& set, int64_t n, int64_t count, const T* grad, const T* similarity, const int64_t* pairs,
                             const char* op, T* gradient);

// out[i] = scale[i] sum over j of weight[i, j] e[j]; weight [n, n].
template <class T>
void weighted_rows(const Set<T>& set, int64_t n, const T* weight, T* out);

// Whether scale is that of a row shorter than 1e-8, whose direction does not change its cosines.
template <class T>
bool clamped(T scale) {
  return scale == 1 / T(1e-8);
}

// loss [Ks, Kt] of similarities [Kt, pairs, 2] and [Ks, pairs, 2], times factor.
template <class T>
void hinges(const T* teacher, const T* student, int64_t teachers, int64_t students, int64_t pairs, double eps, double factor, T* loss);

template <class T>
void hinge_gradients(const T* teacher, const T* student, const T* grad, int64_t teachers, int64_t students, int64_t pairs, double eps,
                     T* d_teacher, T* d_student);

}  // namespace pamkd::grs
