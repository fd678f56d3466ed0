#include "cpu/pointwise.h"

#include "cpu/load.h"

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

// P pixels times N vectors of output channels in registers.
template <class L, class T, int P, int N>
PAMKD_INLINE void product_block(const T* x, Index x_group, Index in, const T* w, T* y, Index y_group, Index y_pixel) {
  constexpr int B = L::vectors;
  typename L::type acc[P][N] = {};
  const Index w_group = in * kBlock * kBlock;
  for (Index c = 0; c < in; c++, x += x_group, w += kBlock * kBlock)
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; k++) {
      typename L::type column[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) column[n] = L::load(w + n * B * w_group + k * kBlock, w_group);
#pragma GCC unroll 16
      for (int p = 0; p < P; p++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) acc[p][n] += x[p * kBlock + k] * column[n];
    }
#pragma GCC unroll 16
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) L::store(y + n * B * y_group + p * y_pixel, y_group, acc[p][n]);
}

template <class L, class T, int P, int N>
void product_groups(const T* x, Index x_group, Index in, const T* w, Map<T> y, Index rows, Index width) {
  for (Index i = 0; i < rows; i++, x += width * kBlock) {
    T* row = y.data + i * y.row;
    Index j = 0;
    for (; j + P <= width; j += P) product_block<L, T, P, N>(x + j * kBlock, x_group, in, w, row + j * y.pixel, y.group, y.pixel);
    for (; j < width; j++) product_block<L, T, 1, N>(x + j * kBlock, x_group, in, w, row + j * y.pixel, y.group, y.pixel);
  }
}

// The largest number of vectors that the rest of `out` blocks is cut into at once.
template <class L>
PAMKD_INLINE int take(Index out) {
  const Index left = out / L::vectors;
  return left <= 3 ? int(left) : left == 4 ? 2 : 3;
}

template <class T>
void product(const T* x, Index x_group, Index in, const T* w, Map<T> y, Index out, Index rows, Index width) {
  using L = Widest<T>;
  constexpr int B = L::vectors, P = 4 * B;
  if (y.pixel == kBlock && y.row == width * kBlock) width *= rows, rows = 1;
  const Index w_group = in * kBlock * kBlock;
  while (out > 0) {
    const int n = take<L>(out);
    const int blocks = n ? n * B : 1;
    switch (n) {
      case 0: product_groups<One<T>, T, 8, 1>(x, x_group, in, w, y, rows, width); break;
      case 1: product_groups<L, T, 8, 1>(x, x_group, in, w, y, rows, width); break;
      case 2: product_groups<L, T, P, 2>(x, x_group, in, w, y, rows, width); break;
      default: product_groups<L, T, P, 3>(x, x_group, in, w, y, rows, width);
    }
    out -= blocks, w += blocks * w_group, y.data += blocks * y.group;
  }
}

// C channels of one block of x times N vectors of g.
template <class L, class T, int C, int N>
PAMKD_INLINE void weight_block(const T* x, const T* g, Index g_group, T* dw, Index w_group, Index pixels) {
  constexpr int B = L::vectors;
  typename L::type acc[C][N];
#pragma GCC unroll 8
  for (int c = 0; c < C; c++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) acc[c][n] = L::load(dw + n * B * w_group + c * kBlock, w_group);
  for (Index p = 0; p < pixels; p++, x += kBlock, g += kBlock) {
    typename L::type grad[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) grad[n] = L::load(g + n * B * g_group, g_group);
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) acc[c][n] += x[c] * grad[n];
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; c++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) L::store(dw + n * B * w_group + c * kBlock, w_group, acc[c][n]);
}

// All channels of one block of x; more registers hold more of them at once.
template <class L, class T, int N>
PAMKD_INLINE void weight_channels(const T* x, const T* g, Index g_group, T* dw, Index w_group, Index pixels) {
  constexpr int C = N == 1 ? 8 : 4 * L::vectors;
  for (int c = 0; c < kBlock; c += C) weight_block<L, T, C, N>(x + c, g, g_group, dw + c * kBlock, w_group, pixels);
}

template <class T>
void weight(const T* x, Index x_group, Index in, const T* g, Index g_group, T* dw, Index out, Index pixels) {
  using L = Widest<T>;
  const Index w_group = in * kBlock * kBlock;
  constexpr Index kPixels = 128;  // x and g of so many pixels stay in the L1 cache over all pairs of blocks
  for (Index p = 0; p < pixels; p += kPixels) {
    const Index count = pixels - p < kPixels ? pixels - p : kPixels;
    for (Index o = 0; o < out;) {
      const int n = take<L>(out - o);
      for (Index i = 0; i < in; i++) {
        const T* xi = x + i * x_group + p * kBlock;
        const T* go = g + o * g_group + p * kBlock;
        T* to = dw + o * w_group + i * kBlock * kBlock;
        switch (n) {
          case 0: weight_channels<One<T>, T, 1>(xi, go, g_group, to, w_group, count); break;
          case 1: weight_channels<L, T, 1>(xi, go, g_group, to, w_group, count); break;
          case 2: weight_channels<L, T, 2>(xi, go, g_group, to, w_group, count); break;
          default: weight_channels<L, T, 3>(xi, go, g_group, to, w_group, count);
        }
      }
      o += n ? n * L::vectors : 1;
    }
  }
}

template <class T>
const PointwiseKernels<T>& table() {
  static constexpr PointwiseKernels<T> kernels{product<T>, weight<T>};
  return kernels;
}

}  // namespace

const PointwiseKernels<float>& pointwise_float() { return table<float>(); }
const PointwiseKernels<double>& pointwise_double() { return table<double>(); }

}  // namespace PAMKD_LEVEL
}  // namespace pamkd
