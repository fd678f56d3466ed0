// Norms of rows of embeddings, and products of all rows: pointers only, compiled once per instruction set.
// Matrices are row-major without gaps. Every function computes its outputs in an order that its arguments alone fix.
#pragma once

#include <cstdint>

#include "cpu/level.h"

PAMKD_DECLARE(
    // scale[i] = 1 / max(||e_i||, 1e-8). Returns the first row that is not finite, or -1. Sets *large where a squared norm
    // overflows, and leaves it else.
    template <class T>
    int64_t row_scales(const T* e, int64_t rows, int64_t d, T* scale, bool* large);

    // Columns c0 .. min(n, c0 + panel_width) of cosine [n, n]: the entries at and above the diagonal, or both halves.
    // panel: room for d * panel_width numbers.
    template <class T>
    void cosine_panel(const T* e, const T* scale, int64_t n, int64_t d, int64_t c0, bool both, T* panel, T* cosine);

    // out[i, c] = scale[i] sum over k of weight[i, k] e[k, c] for c0 <= c < c1 <= c0 + panel_width; weight [n, n], e and out [n, d].
    // panel: room for n * panel_width numbers.
    template <class T>
    void weighted_panel(const T* weight, const T* scale, const T* e, int64_t n, int64_t d, int64_t c0, int64_t c1, T* panel, T* out);
    template <class T>
    int64_t panel_width();)
