#include "cpu/cosine_rows.h"

#include "cpu/row_vec.h"

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

constexpr int kPanelRows = kBytes == 64 ? 12 : kBytes == 32 ? 6 : 4;
constexpr int kPanelVectors = 2;

// sums[r, :] = sum over k of left[r * stride + k] panel[k, :] for R rows; add: to what is there.
template <class T, int R>
PAMKD_INLINE void panel_rows(const T* left, int64_t stride, const T* panel, int64_t count, bool add, T (*sums)[kPanelVectors * kLanes<T>]) {
  V<T> acc[R][kPanelVectors];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; v++) acc[r][v] = V<T>{};
  for (int64_t k = 0; k < count; k++, panel += kPanelVectors * kLanes<T>) {
    V<T> right[kPanelVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; v++) right[v] = load(panel + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const T factor = left[r * stride + k];
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVectors; v++) acc[r][v] += factor * right[v];
    }
  }
  // Chunks are summed by themselves, so that rounding grows with their length, not with that of the rows.
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVectors; v++) {
      T* to = sums[r] + v * kLanes<T>;
      store(to, add ? load(to) + acc[r][v] : acc[r][v]);
    }
}

// sums [rows <= kPanelRows, panel] of `rows` rows of left with a panel [length, panel].
template <class T>
void panel_block(const T* left, int64_t stride, int64_t rows, const T* panel, int64_t length, T (*sums)[kPanelVectors * kLanes<T>]) {
  constexpr int kFew = 4;
  for (int64_t k = 0; k < length; k += kChunk) {
    const int64_t count = min(kChunk, length - k);
    const T* right = panel + k * kPanelVectors * kLanes<T>;
    if (rows == kPanelRows) {
      panel_rows<T, kPanelRows>(left + k, stride, right, count, k > 0, sums);
      continue;
    }
    int64_t r = 0;
    for (; r + kFew <= rows; r += kFew) panel_rows<T, kFew>(left + r * stride + k, stride, right, count, k > 0, sums + r);
    for (; r < rows; r++) panel_rows<T, 1>(left + r * stride + k, stride, right, count, k > 0, sums + r);
  }
}

}  // namespace

template <class T>
int64_t row_scales(const T* e, int64_t rows, int64_t d, T* scale, bool* large) {
  constexpr T eps = T(1e-8);
  constexpr T greatest = sizeof(T) == 4 ? T(__FLT_MAX__) : T(__DBL_MAX__);
  for (int64_t i = 0; i < rows; i++, e += d) {
    T square;
    const T* const row[1] = {e};
    products<T, 1, 1>(row, row, d, false, &square, 1);
    if (square <= greatest) {
      const T norm = sizeof(T) == 4 ? __builtin_sqrtf(square) : __builtin_sqrt(square);
      scale[i] = 1 / (norm > eps ? norm : eps);
      continue;
    }
    T most = 0;
    for (int64_t c = 0; c < d; c++) {
      const T size = e[c] < 0 ? -e[c] : e[c];
      if (!(size <= greatest)) return i;
      most = size > most ? size : most;
    }
    double relative = 0;
    for (int64_t c = 0; c < d; c++) relative += static_cast<double>(e[c] / most) * (e[c] / most);
    scale[i] = static_cast<T>(1 / most / __builtin_sqrt(relative));
    *large = true;
  }
  return -1;
}

template <class T>
int64_t panel_width() {
  return kPanelVectors * kLanes<T>;
}

template <class T>
void cosine_panel(const T* e, const T* scale, int64_t n, int64_t d, int64_t c0, bool both, T* panel, T* cosine) {
  constexpr int64_t width = kPanelVectors * kLanes<T>;
  const int64_t c1 = min(n, c0 + width);
  T column_scale[width];
  for (int64_t c = 0; c < width; c++) column_scale[c] = scale[min(c0 + c, n - 1)];
  for (int64_t c = 0; c < width; c += 4) {  // a last panel repeats the last row; what comes of it is not read
    const T* row[4];
    for (int64_t i = 0; i < 4; i++) row[i] = e + min(c0 + c + i, n - 1) * d;
    for (int64_t k = 0; k < d; k++)
      for (int64_t i = 0; i < 4; i++) panel[k * width + c + i] = row[i][k];
  }
  for (int64_t i = 0; i < c1; i += kPanelRows) {
    T block[kPanelRows][width];
    const int64_t rows = min(kPanelRows, c1 - i);
    panel_block(e + i * d, d, rows, panel, d, block);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = 0; c < width; c++) block[r][c] *= scale[i + r] * column_scale[c];
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = c0 > i + r ? c0 : i + r; c < c1; c++) cosine[(i + r) * n + c] = block[r][c - c0];
    if (both)
      for (int64_t c = c0; c < c1; c++)
        for (int64_t r = 0; r < rows && i + r < c; r++) cosine[c * n + i + r] = block[r][c - c0];
  }
}

template <class T>
void weighted_panel(const T* weight, const T* scale, const T* e, int64_t n, int64_t d, int64_t c0, int64_t c1, T* panel, T* out) {
  constexpr int64_t width = kPanelVectors * kLanes<T>;
  for (int64_t k = 0; k < n; k++) {
    for (int64_t c = c0; c < c1; c++) panel[k * width + c - c0] = e[k * d + c];
    for (int64_t c = c1; c < c0 + width; c++) panel[k * width + c - c0] = 0;
  }
  for (int64_t i = 0; i < n; i += kPanelRows) {
    T block[kPanelRows][width];
    const int64_t rows = min(kPanelRows, n - i);
    panel_block(weight + i * n, n, rows, panel, n, block);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = c0; c < c1; c++) out[(i + r) * d + c] = block[r][c - c0] * scale[i + r];
  }
}

#define PAMKD_INSTANTIATE(T) \
  template int64_t row_scales(const T*, int64_t, int64_t, T*, bool*); \
  template void cosine_panel(const T*, const T*, int64_t, int64_t, int64_t, bool, T*, T*); \
  template void weighted_panel(const T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, T*, T*); \
  template int64_t panel_width<T>();
PAMKD_INSTANTIATE(float)
PAMKD_INSTANTIATE(double)

}  // namespace PAMKD_LEVEL
}  // namespace pamkd
