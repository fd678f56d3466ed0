// Row kernels over unit vectors, shared by the cosine operations; one compilation per instruction set.
#pragma once

#include <cstdint>

#include "cpu/level.h"

#define PAMKD_COSINE_ROWS(T)                                                                                              \
  /* unit [n, d] = rows of e over max(norm, 1e-8), inverse [n]: 1 / that; negative where the norm was clamped. */         \
  /* Returns the first row of [from, to) that is not finite, or -1. */                                                    \
  int64_t normalise_rows(const T* e, T* unit, T* inverse, int64_t from, int64_t to, int64_t d);                           \
  /* sim [r (r - 1) / 2] of one group in row-major order of its pairs, from unit vectors. */                              \
  void group_cosines(const T* unit, const int64_t* group, T* cosines, int64_t r, int64_t d);                              \
  /* out [d] = inverse * (sum_k weight[k] unit[other[k]] - self unit[row]); the projection is left out where clamped. */  \
  void gather_gradient(const T* unit, const int32_t* other, const T* weight, int64_t count, T self, const T* own,         \
                       T inverse, T* out, int64_t d);

PAMKD_DECLARE(PAMKD_COSINE_ROWS(float) PAMKD_COSINE_ROWS(double))
