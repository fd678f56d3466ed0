// The passes over blocked maps (vec.h) between the products: framing, moments, mixing, gradients. One image a call;
// per-channel vectors have groups * 8 entries; maps without a distance `..._group` between their blocks are dense,
// [groups][pixels][8] with `pixels` implied by h * width.
#pragma once

#include "cpu/stencil.h"

namespace pamkd {

template <class T>
struct PassKernels {
  // to = max(x, 0), or max((x - mean) * scale, 0) where mean is given, or x where !relu.
  void (*fill)(const T* x, Index x_group, const T* mean, const T* scale, bool relu, Map<T> to, Index groups, Index rows, Index width);
  // mean and sum of squared deviations of every channel.
  void (*moments)(const T* x, Index groups, Index pixels, double* mean, double* squares);
  // y (+)= sum_k a[k] * (maps[k] - mean[k])
  void (*mix)(T* y, bool add, int count, const T* const* maps, const T* a, const T* mean, Index groups, Index pixels);
  // sums += sum g
  void (*total)(const T* g, T* sums, Index groups, Index pixels);
  // sums[k] += sum g * (maps[k] - mean[k])
  void (*dots)(const T* g, Index g_group, int count, const T* const* maps, Index group, const T* mean, T* sums, Index groups, Index pixels);
  // y = a * (g - g_mean) + b * (z - mean); y may be g or z. (Differences first: where all z are equal, a is 300 and the y of
  // equal g must cancel.)
  void (*norm_input)(const T* g, Index g_group, const T* z, Index z_group, const T* mean, const T* a, const T* b, const T* g_mean, T* y,
                     Index y_group, Index groups, Index pixels);
  // y = dx where q > mean, else 0; sums[0] += sum y, sums[1] += sum y * (q - mean)
  void (*relu_norm_input)(const T* dx, Index dx_group, const T* q, Index q_group, const T* mean, T* y, Index y_group, T* sums, Index groups,
                          Index pixels);
  // g += dx where x > 0
  void (*relu_input)(const T* dx, const T* x, T* g, Index groups, Index pixels);
  // g += the inside of a framed map
  void (*add_inside)(Map<const T> from, T* g, Index groups, Index h, Index width);
  // Between [pixels, channels] rows of `stride` elements and blocked maps, of max(x, 0) where `relu`; padding channels become 0.
  void (*block)(const T* rows, Index stride, Index channels, bool relu, T* map, Index pixels);
  void (*unblock)(const T* map, T* rows, Index stride, Index channels, Index pixels);
  // unblock of the map where x, rows as those written, is positive, else 0
  void (*unblock_positive)(const T* map, const T* x, T* rows, Index stride, Index channels, Index pixels);
  // unblock of a * (map - mean) + c
  void (*norm_unblock)(const T* map, const T* mean, const T* a, const T* c, T* rows, Index stride, Index channels, Index pixels);
};

}  // namespace pamkd

PAMKD_DECLARE(const PassKernels<float>& passes_float(); const PassKernels<double>& passes_double();)
