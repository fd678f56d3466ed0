#include "cpu/cosine_rows.h"

#include <type_traits>

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kPanelRows = 12;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kPanelRows = 6;
#else
constexpr int kBytes = 16, kPanelRows = 4;
#endif
constexpr int kPanelVectors = 2;
constexpr int64_t kChunk = 512;         // columns of a row that stay in the first-level cache

template <class T>
struct Vector {
  typedef T value __attribute__((vector_size(kBytes)));
  typedef T unaligned __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using V = typename Vector<T>::value;
template <class T>
constexpr int kLanes = kBytes / sizeof(T);

#define PAMKD_INLINE inline __attribute__((always_inline))

template <class T>
PAMKD_INLINE V<T> load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::unaligned*>(p);
}

template <class T>
PAMKD_INLINE void store(T* p, V<T> v) {
  *reinterpret_cast<typename Vector<T>::unaligned*>(p) = v;
}

// The sums of the lanes of four vectors. Vectors are halved to 16 bytes first.
template <class W>
PAMKD_INLINE auto halved(W v) {
  using T = std::remove_reference_t<decltype(v[0])>;
  constexpr int lanes = sizeof(W) / sizeof(T);
  if constexpr (sizeof(W) == 16) {
    return v;
  } else if constexpr (lanes == 16) {
    return halved(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  } else if constexpr (lanes == 8) {
    return halved(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
  } else {
    return halved(__builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3));
  }
}

PAMKD_INLINE void four_sums(V<float> a_, V<float> b_, V<float> c_, V<float> d_, float* out) {
  const auto a = halved(a_), b = halved(b_), c = halved(c_), d = halved(d_);
  const auto ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const auto cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const auto sums = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  __builtin_memcpy(out, &sums, sizeof sums);
}

PAMKD_INLINE void four_sums(V<double> a_, V<double> b_, V<double> c_, V<double> d_, double* out) {
  const auto a = halved(a_), b = halved(b_), c = halved(c_), d = halved(d_);
  const auto ab = __builtin_shufflevector(a, b, 0, 2) + __builtin_shufflevector(a, b, 1, 3);
  const auto cd = __builtin_shufflevector(c, d, 0, 2) + __builtin_shufflevector(c, d, 1, 3);
  __builtin_memcpy(out, &ab, sizeof ab);
  __builtin_memcpy(out + 2, &cd, sizeof cd);
}

// out[r * stride + c] (+)= <a[r], b[c]> over d columns.
template <class T, int R, int C>
PAMKD_INLINE void products(const T* const* a, const T* const* b, int64_t d, bool add, T* out, int64_t stride) {
  V<T> acc[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) acc[r][c] = V<T>{};
  int64_t k = 0;
  for (; k + kLanes<T> <= d; k += kLanes<T>) {
    V<T> left[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) left[r] = load(a[r] + k);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      const V<T> right = load(b[c] + k);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) acc[r][c] += left[r] * right;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    T sums[4];
    four_sums(acc[r][0], C > 1 ? acc[r][1 % C] : V<T>{}, C > 2 ? acc[r][2 % C] : V<T>{}, C > 3 ? acc[r][3 % C] : V<T>{}, sums);
#pragma GCC unroll 4
    for (int c = 0; c < C; c++) {
      for (int64_t tail = k; tail < d; tail++) sums[c] += a[r][tail] * b[c][tail];
      T* place = out + r * stride + c;
      *place = add ? *place + sums[c] : sums[c];
    }
  }
}

PAMKD_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

PAMKD_INLINE const int64_t* rows_of(const Groups& groups, int64_t g) {
  return groups.side[g & groups.last_side] + (g >> groups.last_side) * groups.size;
}

// Reads the rows of group g to to[0], to[stride] ...; false where one is outside 0 .. n - 1.
PAMKD_INLINE bool read_group(const Groups& groups, int64_t g, int64_t n, int32_t* to, int64_t stride) {
  const int64_t* from = rows_of(groups, g);
  bool valid = true;
  for (int64_t r = 0; r < groups.size; r++) {
    to[r * stride] = static_cast<int32_t>(from[r]);
    valid &= static_cast<uint64_t>(from[r]) < static_cast<uint64_t>(n);
  }
  return valid;
}

}  // namespace

template <class T>
int64_t row_scales(const T* e, int64_t rows, int64_t d, T* scale, bool* large) {
  constexpr T eps = T(1e-8);
  constexpr T greatest = sizeof(T) == 4 ? T(__FLT_MAX__) : T(__DBL_MAX__);
  for (int64_t i = 0; i < rows; i++, e += d) {
    T square;
    const T* const row[1] = {e};
    products<T, 1, 1>(row, row, d, false, &square, 1);
    if (square <= greatest) {
      const T norm = sizeof(T) == 4 ? __builtin_sqrtf(square) : __builtin_sqrt(square);
      scale[i] = 1 / (norm > eps ? norm : eps);
      continue;
    }
    T most = 0;
    for (int64_t c = 0; c < d; c++) {
      const T size = e[c] < 0 ? -e[c] : e[c];
      if (!(size <= greatest)) return i;
      most = size > most ? size : most;
    }
    double relative = 0;
    for (int64_t c = 0; c < d; c++) relative += static_cast<double>(e[c] / most) * (e[c] / most);
    scale[i] = static_cast<T>(1 / most / __builtin_sqrt(relative));
    *large = true;
  }
  return -1;
}

template <class T>
int64_t min_from_cosines(const T* cosine, int64_t n, const Groups& groups, int64_t begin, int64_t end, int32_t* rows, T* similarity,
                         int64_t* pairs) {
  constexpr int kAtOnce = kGroupsAtOnce;
  const int32_t size = static_cast<int32_t>(groups.size), width = static_cast<int32_t>(n);
  for (int64_t g0 = begin; g0 < end; g0 += kAtOnce) {
    // Lane by lane without branches: which pair is smallest cannot be predicted. A last block repeats its last group.
    for (int lane = 0; lane < kAtOnce; lane++)
      if (!read_group(groups, min(g0 + lane, end - 1), n, rows + lane, kAtOnce)) return min(g0 + lane, end - 1);
    constexpr int kVectors = kAtOnce / kLanes<T>;
    using Code = decltype(V<T>{} < V<T>{});
    V<T> best[kVectors];
    Code found[kVectors];
    for (int v = 0; v < kVectors; v++) best[v] = V<T>{} + T(2), found[v] = Code{} + 1;
    for (int32_t r = 0; r + 1 < size; r++)
      for (int32_t q = r + 1; q < size; q++) {
        int32_t place[kAtOnce];
#pragma GCC unroll 16
        for (int v = 0; v < kAtOnce; v += kLanes<int32_t>) {
          const V<int32_t> i = load(rows + r * kAtOnce + v), j = load(rows + q * kAtOnce + v);
          store(place + v, (i < j ? i : j) * width + (i < j ? j : i));
        }
        T value[kAtOnce];
#pragma GCC unroll 16
        for (int lane = 0; lane < kAtOnce; lane++) value[lane] = cosine[place[lane]];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; v++) {
          const V<T> here = load(value + v * kLanes<T>);
          const Code smaller = here < best[v];
          found[v] = smaller ? Code{} + (r * size + q) : found[v];
          best[v] = smaller ? here : best[v];
        }
      }
    for (int lane = 0; lane < kAtOnce && g0 + lane < end; lane++) {
      const int64_t g = g0 + lane;
      const int32_t code = static_cast<int32_t>(found[lane / kLanes<T>][lane % kLanes<T>]);
      similarity[g] = best[lane / kLanes<T>][lane % kLanes<T>];
      pairs[2 * g] = rows[code / size * kAtOnce + lane];
      pairs[2 * g + 1] = rows[code % size * kAtOnce + lane];
    }
  }
  return -1;
}

namespace {

// Two rows with C others, and with each other (OWN): at most 13 sums, so that every row is loaded once. first, second: the
// places of the products with others[0].
template <class T, int C, bool OWN>
PAMKD_INLINE void strip(const T* a, const T* b, const T* const* others, int64_t d, bool add, T* first, T* second) {
  V<T> with_a[C + 1], with_b[C + 1], own{};
#pragma GCC unroll 8
  for (int c = 0; c < C; c++) with_a[c] = with_b[c] = V<T>{};
  int64_t k = 0;
  for (; k + kLanes<T> <= d; k += kLanes<T>) {
    const V<T> left = load(a + k), right = load(b + k);
    if constexpr (OWN) own += left * right;
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) {
      const V<T> other = load(others[c] + k);
      with_a[c] += left * other;
      with_b[c] += right * other;
    }
  }
  constexpr int kFours = (2 * C + 1 + 3) / 4;
  T sums[4 * kFours];
#pragma GCC unroll 4
  for (int i = 0; i < kFours; i++) {
    const auto pick = [&](int at) { return at < C ? with_a[at] : at < 2 * C ? with_b[at - C] : at == 2 * C ? own : V<T>{}; };
    four_sums(pick(4 * i), pick(4 * i + 1), pick(4 * i + 2), pick(4 * i + 3), sums + 4 * i);
  }
  for (; k < d; k++) {
    for (int c = 0; c < C; c++) {
      sums[c] += a[k] * others[c][k];
      sums[C + c] += b[k] * others[c][k];
    }
    sums[2 * C] += a[k] * b[k];
  }
  for (int c = 0; c < C; c++) {
    first[c] = add ? first[c] + sums[c] : sums[c];
    second[c] = add ? second[c] + sums[C + c] : sums[C + c];
  }
  if constexpr (OWN) first[-1] = add ? first[-1] + sums[2 * C] : sums[2 * C];
}

constexpr int kStrip = 6;

template <class T, bool OWN>
void strip_of(int others_count, const T* a, const T* b, const T* const* others, int64_t d, bool add, T* first, T* second) {
  switch (others_count) {
    case 6: return strip<T, 6, OWN>(a, b, others, d, add, first, second);
    case 5: return strip<T, 5, OWN>(a, b, others, d, add, first, second);
    case 4: return strip<T, 4, OWN>(a, b, others, d, add, first, second);
    case 3: return strip<T, 3, OWN>(a, b, others, d, add, first, second);
    case 2: return strip<T, 2, OWN>(a, b, others, d, add, first, second);
    case 1: return strip<T, 1, OWN>(a, b, others, d, add, first, second);
    default: return strip<T, 0, OWN>(a, b, others, d, add, first, second);
  }
}

}  // namespace

template <class T>
void group_products(const T* e, int64_t stride, int64_t columns, const Groups& groups, int64_t begin, int64_t end, bool add, T* products) {
  const int64_t size = groups.size;
  for (int64_t g = begin; g < end; g++, products += size * size) {
    const int64_t* rows = rows_of(groups, g);
    for (int64_t k = 0; k < columns; k += kChunk) {
      const int64_t width = min(kChunk, columns - k);
      const bool more = add || k > 0;
      for (int64_t r = 0; r + 1 < size; r += 2) {
        const T *a = e + rows[r] * stride + k, *b = e + rows[r + 1] * stride + k;
        T *first = products + r * size, *second = first + size;
        int64_t q = r + 2;
        do {
          const T* others[kStrip];
          const int count = static_cast<int>(min(kStrip, size - q));
          for (int i = 0; i < count; i++) others[i] = e + rows[q + i] * stride + k;
          if (q == r + 2)
            strip_of<T, true>(count, a, b, others, width, more, first + q, second + q);
          else
            strip_of<T, false>(count, a, b, others, width, more, first + q, second + q);
          q += kStrip;
        } while (q < size);
      }
    }
  }
}

template <class T>
void min_of_products(const T* products, const T* scale, const Groups& groups, int64_t begin, int64_t end, T* similarity, int64_t* pairs) {
  const int64_t size = groups.size;
  for (int64_t g = begin; g < end; g++, products += size * size) {
    const int64_t* rows = rows_of(groups, g);
    T best = T(2);
    int64_t first = rows[0], second = rows[1];
    for (int64_t r = 0; r + 1 < size; r++)
      for (int64_t q = r + 1; q < size; q++) {
        const T value = products[r * size + q] * (scale[rows[r]] * scale[rows[q]]);
        if (value < best) best = value, first = rows[r], second = rows[q];
      }
    similarity[g] = best;
    pairs[2 * g] = first;
    pairs[2 * g + 1] = second;
  }
}

namespace {

// S vectors of columns from c on, as long as they fit; returns the first column not done.
template <class T, int S>
PAMKD_INLINE int64_t combine_columns(const T* e, int64_t stride, int64_t c, int64_t columns, const int32_t* row, const T* factor,
                                     int64_t count, T scale, T* out) {
  for (; c + S * kLanes<T> <= columns; c += S * kLanes<T>) {
    V<T> acc[S];
#pragma GCC unroll 8
    for (int s = 0; s < S; s++) acc[s] = V<T>{};
    for (int64_t k = 0; k < count; k++) {
      const T* from = e + row[k] * stride + c;
      const T f = factor[k];
#pragma GCC unroll 8
      for (int s = 0; s < S; s++) acc[s] += f * load(from + s * kLanes<T>);
    }
#pragma GCC unroll 8
    for (int s = 0; s < S; s++) store(out + c + s * kLanes<T>, acc[s] * scale);
  }
  return c;
}

}  // namespace

template <class T>
int64_t combine_width() {
  return 8 * kLanes<T>;
}

template <class T>
void combine_rows(const T* e, int64_t stride, int64_t columns, const int32_t* row, const T* factor, int64_t count, T scale, T* out) {
  int64_t c = combine_columns<T, 8>(e, stride, 0, columns, row, factor, count, scale, out);
  c = combine_columns<T, 4>(e, stride, c, columns, row, factor, count, scale, out);
  c = combine_columns<T, 1>(e, stride, c, columns, row, factor, count, scale, out);
  for (; c < columns; c++) {
    T acc = 0;
    for (int64_t k = 0; k < count; k++) acc += factor[k] * e[row[k] * stride + c];
    out[c] = acc * scale;
  }
}

namespace {

// sums[r, :] = sum over k of left[r * stride + k] panel[k, :] for R rows; add: to what is there.
template <class T, int R>
PAMKD_INLINE void panel_rows(const T* left, int64_t stride, const T* panel, int64_t count, bool add, T (*sums)[kPanelVectors * kLanes<T>]) {
  V<T> acc[R][kPanelVectors];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; v++) acc[r][v] = V<T>{};
  for (int64_t k = 0; k < count; k++, panel += kPanelVectors * kLanes<T>) {
    V<T> right[kPanelVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; v++) right[v] = load(panel + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const T factor = left[r * stride + k];
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVectors; v++) acc[r][v] += factor * right[v];
    }
  }
  // Chunks are summed by themselves, so that rounding grows with their length, not with that of the rows.
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; v++) {
      T* to = sums[r] + v * kLanes<T>;
      store(to, add ? load(to) + acc[r][v] : acc[r][v]);
    }
}

// sums [rows <= kPanelRows, panel] of `rows` rows of left with a panel [length, panel].
template <class T>
void panel_block(const T* left, int64_t stride, int64_t rows, const T* panel, int64_t length, T (*sums)[kPanelVectors * kLanes<T>]) {
  constexpr int kFew = 4;
  for (int64_t k = 0; k < length; k += kChunk) {
    const int64_t count = min(kChunk, length - k);
    const T* right = panel + k * kPanelVectors * kLanes<T>;
    if (rows == kPanelRows) {
      panel_rows<T, kPanelRows>(left + k, stride, right, count, k > 0, sums);
      continue;
    }
    int64_t r = 0;
    for (; r + kFew <= rows; r += kFew) panel_rows<T, kFew>(left + r * stride + k, stride, right, count, k > 0, sums + r);
    for (; r < rows; r++) panel_rows<T, 1>(left + r * stride + k, stride, right, count, k > 0, sums + r);
  }
}

}  // namespace

template <class T>
int64_t panel_width() {
  return kPanelVectors * kLanes<T>;
}

template <class T>
void cosine_panel(const T* e, const T* scale, int64_t n, int64_t d, int64_t c0, bool both, T* panel, T* cosine) {
  constexpr int64_t width = kPanelVectors * kLanes<T>;
  const int64_t c1 = min(n, c0 + width);
  T column_scale[width];
  for (int64_t c = 0; c < width; c++) column_scale[c] = scale[min(c0 + c, n - 1)];
  for (int64_t c = 0; c < width; c += 4) {  // a last panel repeats the last row; what comes of it is not read
    const T* row[4];
    for (int64_t i = 0; i < 4; i++) row[i] = e + min(c0 + c + i, n - 1) * d;
    for (int64_t k = 0; k < d; k++)
      for (int64_t i = 0; i < 4; i++) panel[k * width + c + i] = row[i][k];
  }
  for (int64_t i = 0; i < c1; i += kPanelRows) {
    T block[kPanelRows][width];
    const int64_t rows = min(kPanelRows, c1 - i);
    panel_block(e + i * d, d, rows, panel, d, block);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < width; c++) block[r][c] *= scale[i + r] * column_scale[c];
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = c0 > i + r ? c0 : i + r; c < c1; c++) cosine[(i + r) * n + c] = block[r][c - c0];
    if (both)
      for (int64_t c = c0; c < c1; c++)
        for (int64_t r = 0; r < rows && i + r < c; r++) cosine[c * n + i + r] = block[r][c - c0];
  }
}

template <class T>
void weighted_panel(const T* weight, const T* scale, const T* e, int64_t n, int64_t d, int64_t c0, int64_t c1, T* panel, T* out) {
  constexpr int64_t width = kPanelVectors * kLanes<T>;
  for (int64_t k = 0; k < n; k++) {
    for (int64_t c = c0; c < c1; c++) panel[k * width + c - c0] = e[k * d + c];
    for (int64_t c = c1; c < c0 + width; c++) panel[k * width + c - c0] = 0;
  }
  for (int64_t i = 0; i < n; i += kPanelRows) {
    T block[kPanelRows][width];
    const int64_t rows = min(kPanelRows, n - i);
    panel_block(weight + i * n, n, rows, panel, n, block);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = c0; c < c1; c++) out[(i + r) * d + c] = block[r][c - c0] * scale[i + r];
  }
}

template <class T>
double hinge(const T* teacher, const T* student, int64_t pairs, T eps) {
  double total = 0;
  for (int64_t p = 0; p < 2 * pairs; p += 2) {
    const T t = teacher[p] - teacher[p + 1], value = eps - t * (student[p] - student[p + 1]);
    // Written so that a NaN is summed, as max(0, NaN) is NaN.
    total += t == 0 || value <= 0 ? T(0) : value;
  }
  return total;
}

template <class T>
void hinge_gradients(const T* teacher, const T* student, const T* grad, int64_t teachers, int64_t students, int64_t pairs, int64_t begin,
                     int64_t end, T eps, T* d_teacher, T* d_student) {
  for (int64_t p = begin; p < end; p++) {
    for (int64_t k = 0; k < students; k++) {
      const T* s = student + (k * pairs + p) * 2;
      T sum = 0;
      for (int64_t j = 0; j < teachers; j++) {
        const T* t = teacher + (j * pairs + p) * 2;
        const T order = t[0] - t[1], value = eps - order * (s[0] - s[1]);
        if (order != 0 && !(value <= 0)) sum -= grad[k * teachers + j] * order;
      }
      T* to = d_student + (k * pairs + p) * 2;
      to[0] = sum;
      to[1] = -sum;
    }
    for (int64_t j = 0; j < teachers; j++) {
      const T* t = teacher + (j * pairs + p) * 2;
      const T order = t[0] - t[1];
      T sum = 0;
      for (int64_t k = 0; k < students; k++) {
        const T* s = student + (k * pairs + p) * 2;
        const T difference = s[0] - s[1], value = eps - order * difference;
        if (order != 0 && !(value <= 0)) sum -= grad[k * teachers + j] * difference;
      }
      T* to = d_teacher + (j * pairs + p) * 2;
      to[0] = sum;
      to[1] = -sum;
    }
  }
}

#define PAMKD_INSTANTIATE(T)                                                                                              \
  template int64_t row_scales(const T*, int64_t, int64_t, T*, bool*);                                                     \
  template void cosine_panel(const T*, const T*, int64_t, int64_t, int64_t, bool, T*, T*);                                \
  template int64_t min_from_cosines(const T*, int64_t, const Groups&, int64_t, int64_t, int32_t*, T*, int64_t*);          \
  template void group_products(const T*, int64_t, int64_t, const Groups&, int64_t, int64_t, bool, T*);                    \
  template void min_of_products(const T*, const T*, const Groups&, int64_t, int64_t, T*, int64_t*);                       \
  template void combine_rows(const T*, int64_t, int64_t, const int32_t*, const T*, int64_t, T, T*);                       \
  template void weighted_panel(const T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, T*, T*);                 \
  template int64_t panel_width<T>();                                                                                      \
  template int64_t combine_width<T>();                                                                                    \
  template double hinge(const T*, const T*, int64_t, T);                                                                  \
  template void hinge_gradients(const T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t, T, T*, T*);
PAMKD_INSTANTIATE(float)
PAMKD_INSTANTIATE(double)

}  // namespace PAMKD_LEVEL
}  // namespace pamkd
