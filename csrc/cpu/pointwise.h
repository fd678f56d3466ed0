// Pointwise convolutions of one image in blocked maps: small matrix products over its pixels.
#pragma once

#include "cpu/stencil.h"

namespace pamkd {

template <class T>
struct PointwiseKernels {
  // y [out, rows, width] = w x. x [in, rows * width] is dense in its pixels; w [out, in * 8, 8] has output channels last.
  void (*product)(const T* x, Index x_group, Index in, const T* w, Map<T> y, Index out, Index rows, Index width);
  // dw (as w) += sum over pixels of g x^T; both dense in their pixels.
  void (*weight)(const T* x, Index x_group, Index in, const T* g, Index g_group, T* dw, Index out, Index pixels);
};

}  // namespace pamkd

PAMKD_DECLARE(const PointwiseKernels<float>& pointwise_float(); const PointwiseKernels<double>& pointwise_double();)
