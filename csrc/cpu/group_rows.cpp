#include "cpu/group_rows.h"

#include "cpu/row_vec.h"

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

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

#define PAMKD_INSTANTIATE(T) \
  template int64_t min_from_cosines(const T*, int64_t, const Groups&, int64_t, int64_t, int32_t*, T*, int64_t*); \
  template void group_products(const T*, int64_t, int64_t, const Groups&, int64_t, int64_t, bool, T*); \
  template void min_of_products(const T*, const T*, const Groups&, int64_t, int64_t, T*, int64_t*); \
  template void combine_rows(const T*, int64_t, int64_t, const int32_t*, const T*, int64_t, T, T*); \
  template int64_t combine_width<T>();
PAMKD_INSTANTIATE(float)
PAMKD_INSTANTIATE(double)

}  // namespace PAMKD_LEVEL
}  // namespace pamkd
