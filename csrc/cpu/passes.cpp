#include "cpu/passes.h"

#include "cpu/load.h"

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

// f(vectors, place) for all pixels of a block: as many of them at once as a register holds, then one at a time.
template <class T, class F>
PAMKD_INLINE void each_pixel(Index pixels, const F& f) {
  constexpr Index B = Widest<T>::vectors;
  Index p = 0;
  for (; p + B <= pixels; p += B) f(Widest<T>{}, p * kBlock);
  for (; p < pixels; p++) f(One<T>{}, p * kBlock);
}

template <class T, bool NORM, bool RELU>
void fill_as(const T* x, Index x_group, const T* mean, const T* scale, Map<T> to, Index groups, Index rows, Index width) {
  for (Index g = 0; g < groups; g++) {
    const V<T> m = NORM ? load(mean + g * kBlock) : V<T>{}, s = NORM ? load(scale + g * kBlock) : V<T>{};
    for (Index i = 0; i < rows; i++) {
      const T* from = x + g * x_group + i * width * kBlock;
      T* row = to.data + g * to.group + i * to.row;
      each_pixel<T>(width, [&](auto vectors, Index at) __attribute__((always_inline)) {
        using L = decltype(vectors);
        auto v = L::adjacent(from + at);
        if (NORM) v = (v - L::both(m)) * L::both(s);
        if (RELU) v = v <= 0 ? typename L::type{} : v;  // keeps a NaN
        L::store(row + at, kBlock, v);
      });
    }
  }
}

template <class T>
void fill(const T* x, Index x_group, const T* mean, const T* scale, bool rectify, Map<T> to, Index groups, Index rows, Index width) {
  if (mean)
    fill_as<T, true, true>(x, x_group, mean, scale, to, groups, rows, width);
  else if (rectify)
    fill_as<T, false, true>(x, x_group, mean, scale, to, groups, rows, width);
  else
    fill_as<T, false, false>(x, x_group, mean, scale, to, groups, rows, width);
}

// In double, for values whose squares leave the range of T.
template <class T>
void wide_moments(const T* x, Index pixels, double* mean, double* squares) {
  for (Index c = 0; c < kBlock; c++) {
    double sum = 0, square = 0;
    for (Index p = 0; p < pixels; p++) sum += x[p * kBlock + c];
    sum /= pixels;
    for (Index p = 0; p < pixels; p++) square += (x[p * kBlock + c] - sum) * (x[p * kBlock + c] - sum);
    mean[c] = sum, squares[c] = square;
  }
}

template <class T>
void moments(const T* x, Index groups, Index pixels, double* mean, double* squares) {
  for (Index g = 0; g < groups; g++, x += pixels * kBlock, mean += kBlock, squares += kBlock) {
    // The deviation from one sample is small where the mean is large, so one pass is enough.
    const V<T> pivot = load(x + pixels / 2 * kBlock);
    V<T> sum[4] = {}, square[4] = {};
    Index p = 0;
    for (; p + 4 <= pixels; p += 4)
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++) {
        const V<T> v = load(x + (p + u) * kBlock) - pivot;
        sum[u] += v;
        square[u] += v * v;
      }
    for (; p < pixels; p++) {
      const V<T> v = load(x + p * kBlock) - pivot;
      sum[0] += v;
      square[0] += v * v;
    }
    const V<T> total = (sum[0] + sum[1]) + (sum[2] + sum[3]), shift = total / T(pixels);
    const V<T> raw = (square[0] + square[1]) + (square[2] + square[3]), left = raw - total * shift;
    // An outlying pivot cancels digits; squares may overflow.
    const auto poor = (left < raw * T(1e-2)) | !(left - left == 0);
    bool any = false;
    for (int c = 0; c < kBlock; c++) {
      mean[c] = double(pivot[c]) + shift[c];
      squares[c] = left[c] < 0 ? 0 : left[c];
      any |= poor[c] != 0 && raw[c] != 0;
    }
    if (any) wide_moments(x, pixels, mean, squares);
  }
}

template <class T, int N>
PAMKD_INLINE void mix_as(T* y, bool add, const T* const* maps, const T* a, const T* mean, Index groups, Index pixels) {
  for (Index g = 0; g < groups; g++) {
    V<T> scale[N + 1], m[N + 1];
    for (int k = 0; k < N; k++) scale[k] = load(a + (k * groups + g) * kBlock), m[k] = load(mean + (k * groups + g) * kBlock);
    const Index from = g * pixels * kBlock;
    for (Index p = from; p < from + pixels * kBlock; p += kBlock) {
      V<T> sum = add ? load(y + p) : V<T>{};
#pragma GCC unroll 4
      for (int k = 0; k < N; k++) sum += scale[k] * (load(maps[k] + p) - m[k]);
      store(y + p, sum);
    }
  }
}

template <class T>
void mix(T* y, bool add, int count, const T* const* maps, const T* a, const T* mean, Index groups, Index pixels) {
  if (count == 0 && !add) mix_as<T, 0>(y, add, maps, a, mean, groups, pixels);
  while (count > 0) {
    const int n = count < 4 ? count : 4;
    switch (n) {
      case 1: mix_as<T, 1>(y, add, maps, a, mean, groups, pixels); break;
      case 2: mix_as<T, 2>(y, add, maps, a, mean, groups, pixels); break;
      case 3: mix_as<T, 3>(y, add, maps, a, mean, groups, pixels); break;
      default: mix_as<T, 4>(y, add, maps, a, mean, groups, pixels);
    }
    count -= n, maps += n, a += n * groups * kBlock, mean += n * groups * kBlock, add = true;
  }
}

template <class T>
void total(const T* g, T* sums, Index groups, Index pixels) {
  for (Index b = 0; b < groups; b++) {
    V<T> sum[4] = {};
    const T* from = g + b * pixels * kBlock;
    Index p = 0;
    for (; p + 4 <= pixels; p += 4)
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++) sum[u] += load(from + (p + u) * kBlock);
    for (; p < pixels; p++) sum[0] += load(from + p * kBlock);
    store(sums + b * kBlock, load(sums + b * kBlock) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
  }
}

// U pixels at once, each summed in a chain of its own: additions need not wait for each other.
template <class T, int N, int U>
PAMKD_INLINE void dots_as(const T* g, Index g_group, const T* const* maps, Index group, const T* mean, T* sums, Index groups, Index pixels) {
  for (Index b = 0; b < groups; b++) {
    V<T> sum[N][U] = {}, m[N];
    for (int k = 0; k < N; k++) m[k] = load(mean + (k * groups + b) * kBlock);
    const T* from = g + b * g_group;
    const auto add = [&](int u, Index at) __attribute__((always_inline)) {
      const V<T> grad = load(from + at);
#pragma GCC unroll 4
      for (int k = 0; k < N; k++) sum[k][u] += grad * (load(maps[k] + b * group + at) - m[k]);
    };
    Index p = 0;
    for (; p + U <= pixels; p += U)
#pragma GCC unroll 4
      for (int u = 0; u < U; u++) add(u, (p + u) * kBlock);
    for (; p < pixels; p++) add(0, p * kBlock);
    for (int k = 0; k < N; k++) {
      T* to = sums + (k * groups + b) * kBlock;
      V<T> all = sum[k][0];
      for (int u = 1; u < U; u++) all += sum[k][u];
      store(to, load(to) + all);
    }
  }
}

template <class T>
void dots(const T* g, Index g_group, int count, const T* const* maps, Index group, const T* mean, T* sums, Index groups, Index pixels) {
  while (count > 0) {
    const int n = count < 4 ? count : 4;
    switch (n) {
      case 1: dots_as<T, 1, 4>(g, g_group, maps, group, mean, sums, groups, pixels); break;
      case 2: dots_as<T, 2, 4>(g, g_group, maps, group, mean, sums, groups, pixels); break;
      case 3: dots_as<T, 3, 2>(g, g_group, maps, group, mean, sums, groups, pixels); break;
      default: dots_as<T, 4, 2>(g, g_group, maps, group, mean, sums, groups, pixels);
    }
    count -= n, maps += n, mean += n * groups * kBlock, sums += n * groups * kBlock;
  }
}

template <class T>
void norm_input(const T* g, Index g_group, const T* z, Index z_group, const T* mean, const T* a, const T* b, const T* g_mean, T* y, Index y_group,
                Index groups, Index pixels) {
  for (Index k = 0; k < groups; k++, g += g_group, z += z_group, y += y_group) {
    const V<T> m = load(mean + k * kBlock), gm = load(g_mean + k * kBlock), ka = load(a + k * kBlock), kb = load(b + k * kBlock);
    each_pixel<T>(pixels, [&](auto vectors, Index at) __attribute__((always_inline)) {
      using L = decltype(vectors);
      L::store(y + at, kBlock, L::both(ka) * (L::adjacent(g + at) - L::both(gm)) + L::both(kb) * (L::adjacent(z + at) - L::both(m)));
    });
  }
}

template <class T>
void relu_norm_input(const T* dx, Index dx_group, const T* q, Index q_group, const T* mean, T* y, Index y_group, T* sums, Index groups,
                     Index pixels) {
  for (Index k = 0; k < groups; k++, dx += dx_group, q += q_group, y += y_group) {
    const V<T> m = load(mean + k * kBlock);
    V<T> sum[2] = {}, dot[2] = {};
    int u = 0;
    for (Index p = 0; p < pixels * kBlock; p += kBlock, u ^= 1) {
      const V<T> deviation = load(q + p) - m, d = deviation > 0 ? load(dx + p) : V<T>{};
      sum[u] += d;
      dot[u] += d * deviation;
      store(y + p, d);
    }
    T *first = sums + k * kBlock, *second = sums + (groups + k) * kBlock;
    store(first, load(first) + (sum[0] + sum[1]));
    store(second, load(second) + (dot[0] + dot[1]));
  }
}

template <class T>
void relu_input(const T* dx, const T* x, T* g, Index groups, Index pixels) {
  for (Index p = 0; p < groups * pixels * kBlock; p += kBlock)
    store(g + p, load(g + p) + (load(x + p) > 0 ? load(dx + p) : V<T>{}));
}

template <class T>
void add_inside(Map<const T> from, T* g, Index groups, Index h, Index width) {
  for (Index k = 0; k < groups; k++)
    for (Index i = 0; i < h; i++, g += width * kBlock) {
      const T* row = from.data + k * from.group + i * from.row;
      for (Index j = 0; j < width * kBlock; j += kBlock) store(g + j, load(g + j) + load(row + j));
    }
}

// f.operator()<COUNT>(pixel, group) for all blocks of channels of all pixels; COUNT, the channels that a block has in rows, is
// a constant, so that copies of so many have constant sizes.
template <class F>
PAMKD_INLINE void each_block(Index channels, Index pixels, const F& f) {
  const Index whole = channels / kBlock;
  for (Index p = 0; p < pixels && whole; p++)
    for (Index g = 0; g < whole; g++) f.template operator()<kBlock>(p, g);
#define PAMKD_COUNT(count) \
  case count:              \
    for (Index p = 0; p < pixels; p++) f.template operator()<count>(p, whole); \
    break;
  switch (channels % kBlock) {
    PAMKD_COUNT(1) PAMKD_COUNT(2) PAMKD_COUNT(3) PAMKD_COUNT(4) PAMKD_COUNT(5) PAMKD_COUNT(6) PAMKD_COUNT(7)
  }
#undef PAMKD_COUNT
}

template <class T>
PAMKD_INLINE V<T> positive(V<T> x) {
  return x <= 0 ? V<T>{} : x;  // keeps a NaN
}

template <class T, bool RELU>
void block_as(const T* rows, Index stride, Index channels, T* map, Index pixels) {
  each_block(channels, pixels, [&]<Index COUNT>(Index p, Index g) __attribute__((always_inline)) {
    V<T> v = {};
    __builtin_memcpy(&v, rows + p * stride + g * kBlock, COUNT * sizeof(T));
    store(map + (g * pixels + p) * kBlock, RELU ? positive<T>(v) : v);
  });
}

template <class T>
void block(const T* rows, Index stride, Index channels, bool rectify, T* map, Index pixels) {
  if (rectify)
    block_as<T, true>(rows, stride, channels, map, pixels);
  else
    block_as<T, false>(rows, stride, channels, map, pixels);
}

template <class T>
void unblock(const T* map, T* rows, Index stride, Index channels, Index pixels) {
  each_block(channels, pixels, [&]<Index COUNT>(Index p, Index g) __attribute__((always_inline)) {
    const V<T> v = load(map + (g * pixels + p) * kBlock);
    __builtin_memcpy(rows + p * stride + g * kBlock, &v, COUNT * sizeof(T));
  });
}

template <class T>
void unblock_positive(const T* map, const T* x, T* rows, Index stride, Index channels, Index pixels) {
  each_block(channels, pixels, [&]<Index COUNT>(Index p, Index g) __attribute__((always_inline)) {
    const Index at = p * stride + g * kBlock;
    V<T> sign = {};
    __builtin_memcpy(&sign, x + at, COUNT * sizeof(T));
    const V<T> v = sign > 0 ? load(map + (g * pixels + p) * kBlock) : V<T>{};
    __builtin_memcpy(rows + at, &v, COUNT * sizeof(T));
  });
}

template <class T>
void norm_unblock(const T* map, const T* mean, const T* a, const T* c, T* rows, Index stride, Index channels, Index pixels) {
  each_block(channels, pixels, [&]<Index COUNT>(Index p, Index g) __attribute__((always_inline)) {
    const Index k = g * kBlock;
    const V<T> v = load(a + k) * (load(map + (g * pixels + p) * kBlock) - load(mean + k)) + load(c + k);
    __builtin_memcpy(rows + p * stride + k, &v, COUNT * sizeof(T));
  });
}

template <class T>
const PassKernels<T>& table() {
  static constexpr PassKernels<T> kernels{fill<T>,            moments<T>,    mix<T>,        total<T>, dots<T>,    norm_input<T>,
                                          relu_norm_input<T>, relu_input<T>, add_inside<T>, block<T>, unblock<T>,  unblock_positive<T>,
                                          norm_unblock<T>};
  return kernels;
}

}  // namespace

const PassKernels<float>& passes_float() { return table<float>(); }
const PassKernels<double>& passes_double() { return table<double>(); }

}  // namespace PAMKD_LEVEL
}  // namespace pamkd
