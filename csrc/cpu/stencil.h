// Depthwise convolutions and 3x3 pools of one image in blocked maps (vec.h), once per instruction set.
#pragma once

#include "cpu/level.h"
#include "cpu/vec.h"

namespace pamkd {

// A window into a padded or dense map: `data` at the first pixel, distances in elements.
template <class T>
struct Map {
  T* data;
  Index group;  // from one block of channels to the next
  Index row;
  Index pixel;
};

template <class T>
struct StencilKernels {
  // y = correlation of x with w [groups, k * k, 8]; x.data is the sample under the first tap of the first output.
  // x steps `stride` pixels per output pixel; the pixels of x and y are adjacent. With `add` the result is added to y.
  void (*depthwise)(int k, int dilation, int stride, bool add, Map<const T> x, const T* w, Map<T> y, Index groups, Index h, Index width);
  // dw [groups, k * k, 8] += sum over output pixels of g * x under each tap; x as above, g steps as x does.
  void (*depthwise_weight)(int k, int dilation, int stride, Map<const T> x, Map<const T> g, T* dw, Index groups, Index h, Index width);
  // 3x3 pools of an input whose frame of one pixel holds -inf (max) or 0 (average, count [h, width] samples under the window).
  void (*max_pool)(int stride, Map<const T> x, Map<T> y, Index groups, Index h, Index width);
  void (*avg_pool)(int stride, Map<const T> x, const T* scale, Map<T> y, Index groups, Index h, Index width);
  // dx (with the same frame) += g at the first maximum of each window (best, dense: what max_pool gave) / spread over the window.
  void (*max_pool_input)(int stride, Map<const T> x, const T* best, Map<const T> g, Map<T> dx, Index groups, Index h, Index width);
  void (*avg_pool_input)(int stride, const T* scale, Map<const T> g, Map<T> dx, Index groups, Index h, Index width);
};

}  // namespace pamkd

PAMKD_DECLARE(const StencilKernels<float>& stencils_float(); const StencilKernels<double>& stencils_double();)
