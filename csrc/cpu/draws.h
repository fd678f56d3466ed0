// What is drawn inside a cell, drawn where it is used: nothing is stored. One image in blocked maps (vec.h), once per instruction
// set. pamkd/reference/disturbance.py defines the numbers.
#pragma once

#include <cstdint>

#include "cpu/level.h"
#include "cpu/vec.h"

namespace pamkd {

// The numbers of one use in one image.
struct Draw {
  uint64_t seed;
  uint32_t image, use;
};

// Per-channel vectors have groups * 8 entries; maps are dense, [groups][pixels][8].
template <class T>
struct DrawKernels {
  // y += a * noise
  void (*mix_noise)(T* y, const T* a, Draw draw, Index groups, Index pixels);
  // sums += sum g * noise
  void (*dot_noise)(const T* g, T* sums, Draw draw, Index groups, Index pixels);
  // y += a * x where the word drawn is at least `dropped`
  void (*mix_kept)(T* y, const T* x, const T* a, uint32_t dropped, Draw draw, Index groups, Index pixels);
  // sums += sum g * x there
  void (*dot_kept)(const T* g, const T* x, T* sums, uint32_t dropped, Draw draw, Index groups, Index pixels);
};

}  // namespace pamkd

PAMKD_DECLARE(const DrawKernels<float>& draws_float(); const DrawKernels<double>& draws_double();)
