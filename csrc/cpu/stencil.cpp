#include "cpu/stencil.h"

#include "cpu/load.h"

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

// P adjacent outputs stay in registers; each sample is loaded once per kernel row and feeds every tap that needs it.
// Few outputs are summed in two chains, so that additions need not wait for each other.
template <class L, class T, int K, int D, int S, int P, bool ADD>
PAMKD_INLINE void depthwise_block(const T* x, Index row, const T* w, T* y) {
  constexpr int N = P / L::vectors, STEP = S * L::vectors, CHAINS = N < 8 ? 2 : 1;
  typename L::type acc[CHAINS][N] = {};
#pragma GCC unroll 16
  for (int p = 0; p < N && ADD; p++) acc[0][p] = L::adjacent(y + p * L::vectors * kBlock);
#pragma GCC unroll 8
  for (int ky = 0; ky < K; ky++) {
    const T* r = x + ky * D * row;
    typename L::type tap[K];
#pragma GCC unroll 8
    for (int kx = 0; kx < K; kx++) tap[kx] = L::both(load(w + (ky * K + kx) * kBlock));
#pragma GCC unroll 48
    for (int u = 0; u < (N - 1) * STEP + (K - 1) * D + 1; u++) {
      const typename L::type sample = S == 1 ? L::adjacent(r + u * kBlock) : L::load(r + u * kBlock, S * kBlock);
#pragma GCC unroll 8
      for (int kx = 0; kx < K; kx++) {
        const int from = u - kx * D;
        if (from >= 0 && from % STEP == 0 && from / STEP < N) acc[kx % CHAINS][from / STEP] += sample * tap[kx];
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < N; p++)
    L::store(y + p * L::vectors * kBlock, kBlock, CHAINS == 2 ? acc[0][p] + acc[CHAINS - 1][p] : acc[0][p]);
}

template <class T, int K, int D, int S, bool ADD>
void depthwise(Map<const T> x, const T* w, Map<T> y, Index groups, Index h, Index width) {
  using L = Widest<T>;
  constexpr int P = sizeof(T) == 4 ? 8 * L::vectors : 2, Q = P / 2, R = L::vectors;  // float64 is for checks: not worth its compile time
  for (Index g = 0; g < groups; g++, w += K * K * kBlock)
    for (Index i = 0; i < h; i++) {
      const T* xr = x.data + g * x.group + i * S * x.row;
      T* yr = y.data + g * y.group + i * y.row;
      Index j = 0;
      for (; j + P <= width; j += P) depthwise_block<L, T, K, D, S, P, ADD>(xr + j * S * kBlock, x.row, w, yr + j * kBlock);
      for (; Q > R && j + Q <= width; j += Q) depthwise_block<L, T, K, D, S, Q < R ? R : Q, ADD>(xr + j * S * kBlock, x.row, w, yr + j * kBlock);
      for (; j + R <= width; j += R) depthwise_block<L, T, K, D, S, R, ADD>(xr + j * S * kBlock, x.row, w, yr + j * kBlock);
      for (; R > 1 && j < width; j++) depthwise_block<One<T>, T, K, D, S, 1, ADD>(xr + j * S * kBlock, x.row, w, yr + j * kBlock);
    }
}

// N vectors of pixels at once; R kernel rows share the loads of g.
template <class L, class T, int K, int D, int S, int R, int N>
PAMKD_INLINE void weight_pixels(const T* x, Index row, const T* g, typename L::type (&acc)[R][K]) {
  constexpr int STEP = S * L::vectors;
  const auto at = [](const T* p) { return S == 1 ? L::adjacent(p) : L::load(p, S * kBlock); };
  typename L::type grad[N];
#pragma GCC unroll 4
  for (int p = 0; p < N; p++) grad[p] = at(g + p * STEP * kBlock);
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 48
    for (int u = 0; u < (N - 1) * STEP + (K - 1) * D + 1; u++) {
      const typename L::type sample = at(x + r * D * row + u * kBlock);
#pragma GCC unroll 8
      for (int kx = 0; kx < K; kx++) {
        const int from = u - kx * D;
        if (from >= 0 && from % STEP == 0 && from / STEP < N) acc[r][kx] += sample * grad[from / STEP];
      }
    }
}

template <class T, int K, int D, int S, int R>
PAMKD_INLINE void weight_rows(Map<const T> x, Map<const T> g, T* dw, Index h, Index width) {
  using L = Widest<T>;
  constexpr int B = L::vectors;
  typename L::type acc[R][K] = {};
  for (Index i = 0; i < h; i++) {
    const T* xr = x.data + i * S * x.row;
    const T* gr = g.data + i * g.row;
    Index j = 0;
    for (; j + 4 * B <= width; j += 4 * B)
      weight_pixels<L, T, K, D, S, R, 4>(xr + j * S * kBlock, x.row, gr + j * S * kBlock, acc);
    for (; j + B <= width; j += B) weight_pixels<L, T, K, D, S, R, 1>(xr + j * S * kBlock, x.row, gr + j * S * kBlock, acc);
    for (; j < width; j++) {
      const typename L::type grad = L::first(load(gr + j * S * kBlock));
#pragma GCC unroll 4
      for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int kx = 0; kx < K; kx++) acc[r][kx] += grad * L::first(load(xr + r * D * x.row + (j * S + kx * D) * kBlock));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int kx = 0; kx < K; kx++) store(dw + (r * K + kx) * kBlock, load(dw + (r * K + kx) * kBlock) + L::sum(acc[r][kx]));
}

template <class T, int K, int D, int S>
void depthwise_weight(Map<const T> x, Map<const T> g, T* dw, Index groups, Index h, Index width) {
  constexpr int R = K == 3 ? 3 : 2;
  for (Index b = 0; b < groups; b++, dw += K * K * kBlock, x.data += x.group, g.data += g.group) {
    Map<const T> from = x;
    for (int ky = 0; ky < K; ky += R, from.data += R * D * x.row)
      if (ky + R <= K)
        weight_rows<T, K, D, S, R>(from, g, dw + ky * K * kBlock, h, width);
      else
        weight_rows<T, K, D, S, 1>(from, g, dw + ky * K * kBlock, h, width);
  }
}

template <class T, int K, int D, int S>
PAMKD_INLINE void depthwise_any(bool add, Map<const T> x, const T* w, Map<T> y, Index groups, Index h, Index width) {
  if (add)
    depthwise<T, K, D, S, true>(x, w, y, groups, h, width);
  else
    depthwise<T, K, D, S, false>(x, w, y, groups, h, width);
}

template <class T>
void depthwise_dispatch(int k, int dilation, int stride, bool add, Map<const T> x, const T* w, Map<T> y, Index groups, Index h, Index width) {
  switch (k * 100 + dilation * 10 + stride) {
    case 311: return depthwise_any<T, 3, 1, 1>(add, x, w, y, groups, h, width);
    case 312: return depthwise_any<T, 3, 1, 2>(add, x, w, y, groups, h, width);
    case 321: return depthwise_any<T, 3, 2, 1>(add, x, w, y, groups, h, width);
    case 322: return depthwise_any<T, 3, 2, 2>(add, x, w, y, groups, h, width);
    case 511: return depthwise_any<T, 5, 1, 1>(add, x, w, y, groups, h, width);
    case 512: return depthwise_any<T, 5, 1, 2>(add, x, w, y, groups, h, width);
    case 521: return depthwise_any<T, 5, 2, 1>(add, x, w, y, groups, h, width);
    case 522: return depthwise_any<T, 5, 2, 2>(add, x, w, y, groups, h, width);
  }
}

template <class T>
void weight_dispatch(int k, int dilation, int stride, Map<const T> x, Map<const T> g, T* dw, Index groups, Index h, Index width) {
  switch (k * 100 + dilation * 10 + stride) {
    case 311: return depthwise_weight<T, 3, 1, 1>(x, g, dw, groups, h, width);
    case 312: return depthwise_weight<T, 3, 1, 2>(x, g, dw, groups, h, width);
    case 321: return depthwise_weight<T, 3, 2, 1>(x, g, dw, groups, h, width);
    case 322: return depthwise_weight<T, 3, 2, 2>(x, g, dw, groups, h, width);
    case 511: return depthwise_weight<T, 5, 1, 1>(x, g, dw, groups, h, width);
    case 512: return depthwise_weight<T, 5, 1, 2>(x, g, dw, groups, h, width);
    case 521: return depthwise_weight<T, 5, 2, 1>(x, g, dw, groups, h, width);
    case 522: return depthwise_weight<T, 5, 2, 2>(x, g, dw, groups, h, width);
  }
}

template <class T>
void max_pool(int stride, Map<const T> x, Map<T> y, Index groups, Index h, Index width) {
  for (Index g = 0; g < groups; g++)
    for (Index i = 0; i < h; i++)
      for (Index j = 0; j < width; j++) {
        const T* from = x.data + g * x.group + i * stride * x.row + j * stride * x.pixel;
        V<T> best = load(from);
#pragma GCC unroll 9
        for (int t = 1; t < 9; t++) {
          const V<T> sample = load(from + t / 3 * x.row + t % 3 * x.pixel);
          best = (sample > best) | (sample != sample) ? sample : best;  // a NaN wins, as in PyTorch
        }
        store(y.data + g * y.group + i * y.row + j * y.pixel, best);
      }
}

template <class T>
void avg_pool(int stride, Map<const T> x, const T* scale, Map<T> y, Index groups, Index h, Index width) {
  for (Index g = 0; g < groups; g++)
    for (Index i = 0; i < h; i++)
      for (Index j = 0; j < width; j++) {
        const T* from = x.data + g * x.group + i * stride * x.row + j * stride * x.pixel;
        V<T> sum = load(from);
#pragma GCC unroll 9
        for (int t = 1; t < 9; t++) sum += load(from + t / 3 * x.row + t % 3 * x.pixel);
        store(y.data + g * y.group + i * y.row + j * y.pixel, sum * scale[i * width + j]);
      }
}

template <class T>
void max_pool_input(int stride, Map<const T> x, const T* best_of, Map<const T> g, Map<T> dx, Index groups, Index h, Index width) {
  for (Index b = 0; b < groups; b++)
    for (Index i = 0; i < h; i++)
      for (Index j = 0; j < width; j++) {
        const T* from = x.data + b * x.group + i * stride * x.row + j * stride * x.pixel;
        T* to = dx.data + b * dx.group + i * stride * dx.row + j * stride * dx.pixel;
        const V<T> best = load(best_of + ((b * h + i) * width + j) * kBlock);
        V<T> left = load(g.data + b * g.group + i * g.row + j * g.pixel);  // what has not found its maximum yet
#pragma GCC unroll 9
        for (int t = 0; t < 9; t++) {
          const V<T> sample = load(from + t / 3 * x.row + t % 3 * x.pixel);
          const V<T> share = sample == best ? left : V<T>{};
          left = sample == best ? V<T>{} : left;
          T* at = to + t / 3 * dx.row + t % 3 * dx.pixel;
          store(at, load(at) + share);
        }
      }
}

template <class T>
void avg_pool_input(int stride, const T* scale, Map<const T> g, Map<T> dx, Index groups, Index h, Index width) {
  for (Index b = 0; b < groups; b++)
    for (Index i = 0; i < h; i++)
      for (Index j = 0; j < width; j++) {
        T* to = dx.data + b * dx.group + i * stride * dx.row + j * stride * dx.pixel;
        const V<T> share = load(g.data + b * g.group + i * g.row + j * g.pixel) * scale[i * width + j];
#pragma GCC unroll 9
        for (int t = 0; t < 9; t++) {
          T* at = to + t / 3 * dx.row + t % 3 * dx.pixel;
          store(at, load(at) + share);
        }
      }
}

template <class T>
const StencilKernels<T>& table() {
  static constexpr StencilKernels<T> kernels{depthwise_dispatch<T>, weight_dispatch<T>, max_pool<T>,
                                             avg_pool<T>,           max_pool_input<T>,  avg_pool_input<T>};
  return kernels;
}

}  // namespace

const StencilKernels<float>& stencils_float() { return table<float>(); }
const StencilKernels<double>& stencils_double() { return table<double>(); }

}  // namespace PAMKD_LEVEL
}  // namespace pamkd
