// Host-side helpers of the cosine operations.
#pragma once

#include <vector>

#include "common/check.h"
#include "cpu/cosine_rows.h"

namespace pamkd {

template <class T>
using NormaliseRows = int64_t (*)(const T*, T*, T*, int64_t, int64_t, int64_t);
template <class T>
using GroupCosines = void (*)(const T*, const int64_t*, T*, int64_t, int64_t);
template <class T>
using GatherGradient = void (*)(const T*, const int32_t*, const T*, int64_t, T, const T*, T, T*, int64_t);

// unit [rows, d] and inverse [rows] of e [rows, d]. Raises where a row holds NaN or infinity.
template <class T>
void normalise(const char* op, const T* e, T* unit, T* inverse, int64_t rows, int64_t d) {
  const NormaliseRows<T> kernel = PAMKD_PICK_AS(NormaliseRows<T>, normalise_rows);
  const int64_t grain = 1 + 16384 / (d + 1), chunks = (rows + grain - 1) / grain;
  std::vector<int64_t> bad(chunks, -1);
  torch::stable::parallel_for(0, chunks, 1, [&](int64_t from, int64_t to) {
    for (int64_t c = from; c < to; ++c)
      bad[c] = kernel(e, unit, inverse, c * grain, (c + 1) * grain < rows ? (c + 1) * grain : rows, d);
  });
  for (const int64_t row : bad)
    STD_TORCH_CHECK(row < 0, op, ": embedding row ", row, " holds NaN or infinity; needed are finite embeddings");
}

}  // namespace pamkd
