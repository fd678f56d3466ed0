#include "cpu/pointwise.h"

#include "cpu/load.h"

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

// P pixels times N blocks of output channels in registers.
template <class T, int P, int N>
PAMKD_INLINE void product_block(const T* x, Index x_group, Index in, const T* w, T* y, Index y_group, Index y_pixel) {
  V<T> acc[P][N] = {};
  const Index w_group = in * kBlock * kBlock;
  for (Index c = 0; c < in; c++, x += x_group, w += kBlock * kBlock)
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; k++) {
      V<T> column[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) column[n] = load(w + n * w_group + k * kBlock);
#pragma GCC unroll 8
      for (int p = 0; p < P; p++)
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) acc[p][n] += x[p * kBlock + k] * column[n];
    }
#pragma GCC unroll 8
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) store(y + n * y_group + p * y_pixel, acc[p][n]);
}

template <class T, int P, int N>
void product_groups(const T* x, Index x_group, Index in, const T* w, Map<T> y, Index rows, Index width) {
  for (Index i = 0; i < rows; i++, x += width * kBlock) {
    T* row = y.data + i * y.row;
    Index j = 0;
    for (; j + P <= width; j += P) product_block<T, P, N>(x + j * kBlock, x_group, in, w, row + j * y.pixel, y.group, y.pixel);
    for (; j < width; j++) product_block<T, 1, N>(x + j * kBlock, x_group, in, w, row + j * y.pixel, y.group, y.pixel);
  }
}

template <class T>
void product(const T* x, Index x_group, Index in, const T* w, Map<T> y, Index out, Index rows, Index width) {
  if (y.pixel == kBlock && y.row == width * kBlock) width *= rows, rows = 1;
  const Index w_group = in * kBlock * kBlock;
  while (out > 0) {
    const Index n = out == 1 ? 1 : out % 2 ? 3 : 2;
    if (n == 1)
      product_groups<T, 8, 1>(x, x_group, in, w, y, rows, width);
    else if (n == 2)
      product_groups<T, 4, 2>(x, x_group, in, w, y, rows, width);
    else
      product_groups<T, 4, 3>(x, x_group, in, w, y, rows, width);
    out -= n, w += n * w_group, y.data += n * y.group;
  }
}

// C channels of one block of x times N blocks of g.
template <class T, int C, int N>
PAMKD_INLINE void weight_block(const T* x, const T* g, Index g_group, T* dw, Index w_group, Index pixels) {
  V<T> acc[C][N];
#pragma GCC unroll 8
  for (int c = 0; c < C; c++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) acc[c][n] = load(dw + n * w_group + c * kBlock);
  for (Index p = 0; p < pixels; p++, x += kBlock, g += kBlock) {
    V<T> grad[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) grad[n] = load(g + n * g_group);
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) acc[c][n] += x[c] * grad[n];
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; c++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) store(dw + n * w_group + c * kBlock, acc[c][n]);
}

template <class T>
void weight(const T* x, Index x_group, Index in, const T* g, Index g_group, T* dw, Index out, Index pixels) {
  const Index w_group = in * kBlock * kBlock;
  constexpr Index kPixels = 128;  // x and g of so many pixels stay in the L1 cache over all pairs of blocks
  for (Index p = 0; p < pixels; p += kPixels) {
    const Index count = pixels - p < kPixels ? pixels - p : kPixels;
    for (Index o = 0; o < out;) {
      const Index n = out - o == 1 ? 1 : (out - o) % 2 ? 3 : 2;
      for (Index i = 0; i < in; i++) {
        const T* xi = x + i * x_group + p * kBlock;
        const T* go = g + o * g_group + p * kBlock;
        T* to = dw + o * w_group + i * kBlock * kBlock;
        if (n == 1) {
          weight_block<T, 8, 1>(xi, go, g_group, to, w_group, count);
        } else if (n == 2) {
          weight_block<T, 4, 2>(xi, go, g_group, to, w_group, count);
          weight_block<T, 4, 2>(xi + 4, go, g_group, to + 4 * kBlock, w_group, count);
        } else {
          weight_block<T, 4, 3>(xi, go, g_group, to, w_group, count);
          weight_block<T, 4, 3>(xi + 4, go, g_group, to + 4 * kBlock, w_group, count);
        }
      }
      o += n;
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
