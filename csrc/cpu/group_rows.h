// Smallest cosines of groups of rows, and sums of few rows: pointers only, compiled once per instruction set.
// Matrices are row-major without gaps. Every function computes its outputs in an order that its arguments alone fix.
#pragma once

#include <cstdint>

#include "cpu/level.h"

namespace pamkd {

// Group g is side[0] + g * size where last_side is 0, else side[g % 2] + g / 2 * size: the groups of pairs (X, Y) alternate.
struct Groups {
  const int64_t* side[2];
  int64_t last_side, count, size;
};

constexpr int kGroupsAtOnce = 16;

}  // namespace pamkd

PAMKD_DECLARE(
    // The smallest cosine of groups begin .. end and the rows that have it, from the upper half of cosine [n, n].
    // Returns the first group with a row outside 0 .. n - 1, or -1. rows: room for kGroupsAtOnce groups. n^2 fits an int32_t.
    template <class T>
    int64_t min_from_cosines(const T* cosine, int64_t n, const Groups& groups, int64_t begin, int64_t end, int32_t* rows, T* similarity,
                             int64_t* pairs);

    // products [end - begin, groups.size, groups.size] of the rows of groups begin .. end over some columns, row i at e + i stride:
    // those of each row with later rows of the group. add: to what is there.
    template <class T>
    void group_products(const T* e, int64_t stride, int64_t columns, const Groups& groups, int64_t begin, int64_t end, bool add,
                        T* products);

    // The smallest cosine of groups begin .. end, given such products over all columns, and the rows that have it.
    template <class T>
    void min_of_products(const T* products, const T* scale, const Groups& groups, int64_t begin, int64_t end, T* similarity,
                         int64_t* pairs);

    // out[c] = scale sum over k of factor[k] e[row[k] stride + c] for 0 <= c < columns.
    template <class T>
    void combine_rows(const T* e, int64_t stride, int64_t columns, const int32_t* row, const T* factor, int64_t count, T scale, T* out);

    // Columns that are combined at once: of so many, it is fastest.
    template <class T>
    int64_t combine_width();)
