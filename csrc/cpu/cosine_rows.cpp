#include "cpu/cosine_rows.h"

namespace pamkd::PAMKD_LEVEL {
namespace {

constexpr int kBytes = 32;  // one vector register on AVX2, half of one on AVX-512, two on SSE
template <class T>
struct Vec {
  static constexpr int64_t width = kBytes / sizeof(T);
  typedef T type __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
};

template <class T>
inline typename Vec<T>::type load(const T* p) {
  return *reinterpret_cast<const typename Vec<T>::type*>(p);
}
template <class T>
inline T sum(typename Vec<T>::type v) {
  T s = 0;
  for (int64_t i = 0; i < Vec<T>::width; ++i) s += v[i];
  return s;
}

// Dot products of rows a[0..A) with rows b[0..B): A x B accumulators, A + B loads per vector of the feature axis.
template <class T, int A, int B>
inline void dot_tile(const T* const* a, const T* const* b, T* out, int64_t d) {
  using V = typename Vec<T>::type;
  V acc[A][B] = {};
  int64_t i = 0;
  for (; i + Vec<T>::width <= d; i += Vec<T>::width) {
    V vb[B];
    for (int q = 0; q < B; ++q) vb[q] = load(b[q] + i);
    for (int p = 0; p < A; ++p) {
      const V va = load(a[p] + i);
      for (int q = 0; q < B; ++q) acc[p][q] += va * vb[q];
    }
  }
  for (int p = 0; p < A; ++p)
    for (int q = 0; q < B; ++q) {
      T s = sum<T>(acc[p][q]);
      for (int64_t k = i; k < d; ++k) s += a[p][k] * b[q][k];
      out[p * B + q] = s;
    }
}

template <class T>
int64_t normalise(const T* e, T* unit, T* inverse, int64_t from, int64_t to, int64_t d) {
  for (int64_t row = from; row < to; ++row) {
    const T* x = e + row * d;
    double square[4] = {};  // of float32 rows exactly enough that no finite row overflows
    int64_t i = 0;
    for (; i + 4 <= d; i += 4)
      for (int k = 0; k < 4; ++k) square[k] += double(x[i + k]) * double(x[i + k]);
    for (; i < d; ++i) square[0] += double(x[i]) * double(x[i]);
    const double norm = __builtin_sqrt((square[0] + square[1]) + (square[2] + square[3]));
    if (!(norm <= __DBL_MAX__)) return row;
    const bool clamped = norm < 1e-8;
    const T scale = T(1 / (clamped ? 1e-8 : norm));
    for (int64_t k = 0; k < d; ++k) unit[row * d + k] = x[k] * scale;
    inverse[row] = clamped ? -scale : scale;
  }
  return -1;
}

template <class T>
void cosines_of(const T* unit, const int64_t* group, T* out, int64_t r, int64_t d) {
  // Pairs (p, q), p < q, lie at out[p (2 r - p - 1) / 2 + q - p - 1]. Tiles of 2 x 4 rows cover the upper triangle.
  T tile[8];
  for (int64_t p = 0; p < r; p += 2) {
    for (int64_t q = p + 1; q < r; q += 4) {
      const T *a[2], *b[4];
      for (int k = 0; k < 2; ++k) a[k] = unit + group[p + k < r ? p + k : r - 1] * d;
      for (int k = 0; k < 4; ++k) b[k] = unit + group[q + k < r ? q + k : r - 1] * d;
      const int64_t columns = r - q < 4 ? r - q : 4;
      if (columns == 1) {
        const T* single[1] = {b[0]};
        T two[2];
        dot_tile<T, 2, 1>(a, single, two, d);
        tile[0] = two[0], tile[4] = two[1];
      } else {
        dot_tile<T, 2, 4>(a, b, tile, d);
      }
      for (int64_t k = 0; k < 2 && p + k < r; ++k)
        for (int64_t c = 0; c < columns; ++c)
          if (p + k < q + c) {
            const int64_t i = p + k;
            out[i * (2 * r - i - 1) / 2 + q + c - i - 1] = tile[k * 4 + c];
          }
    }
  }
}

template <class T>
void gather(const T* unit, const int32_t* other, const T* weight, int64_t count, T self, const T* own, T inverse, T* out,
            int64_t d) {
  using V = typename Vec<T>::type;
  constexpr int kTile = 8;  // vectors of the output row kept in registers: 64 floats
  const bool clamped = inverse < 0;
  const T scale = clamped ? -inverse : inverse, project = clamped ? T(0) : self;
  int64_t i = 0;
  for (; i + kTile * Vec<T>::width <= d; i += kTile * Vec<T>::width) {
    V acc[kTile] = {};
    for (int64_t k = 0; k < count; ++k) {
      const T* x = unit + int64_t(other[k]) * d + i;
      for (int t = 0; t < kTile; ++t) acc[t] += load(x + t * Vec<T>::width) * weight[k];
    }
    for (int t = 0; t < kTile; ++t) {
      const V result = (acc[t] - load(own + i + t * Vec<T>::width) * project) * scale;
      *reinterpret_cast<V*>(out + i + t * Vec<T>::width) = result;
    }
  }
  for (int64_t c = i; c < d; ++c) out[c] = -own[c] * project;
  for (int64_t k = 0; k < count; ++k) {
    const T* x = unit + int64_t(other[k]) * d;
    for (int64_t c = i; c < d; ++c) out[c] += x[c] * weight[k];
  }
  for (int64_t c = i; c < d; ++c) out[c] *= scale;
}

}  // namespace

#define PAMKD_DEFINE(T)                                                                                               \
  int64_t normalise_rows(const T* e, T* unit, T* inverse, int64_t from, int64_t to, int64_t d) {                      \
    return normalise(e, unit, inverse, from, to, d);                                                                  \
  }                                                                                                                   \
  void group_cosines(const T* unit, const int64_t* group, T* cosines, int64_t r, int64_t d) {                         \
    cosines_of(unit, group, cosines, r, d);                                                                           \
  }                                                                                                                   \
  void gather_gradient(const T* unit, const int32_t* other, const T* weight, int64_t count, T self, const T* own,     \
                       T inverse, T* out, int64_t d) {                                                                \
    gather(unit, other, weight, count, self, own, inverse, out, d);                                                   \
  }
PAMKD_DEFINE(float)
PAMKD_DEFINE(double)

}  // namespace pamkd::PAMKD_LEVEL
