#include "cpu/grs.h"

#include <algorithm>
#include <atomic>

namespace pamkd::grs {
namespace {

constexpr int64_t kHingePairs = 4096;  // pairs of one partial sum: fixed, so that the number of threads does not matter

using torch::stable::parallel_for;

// The smallest of the positions that tasks report; any order of reports gives the same.
class First {
 public:
  void report(int64_t position) {
    int64_t known = first_.load();
    while (position < known && !first_.compare_exchange_weak(known, position)) {
    }
  }
  bool any() const { return first_.load() != INT64_MAX; }
  int64_t position() const { return first_.load(); }

 private:
  std::atomic<int64_t> first_{INT64_MAX};
};

template <class T>
std::unique_ptr<T[]> scratch(int64_t count) {
  return std::make_unique_for_overwrite<T[]>(static_cast<size_t>(count));
}

// Products of all rows are n^2 / 2, those of the groups count * size (size - 1) / 2; each times what a product costs in
// its kernel: blocks of a tile share more loads, but every cosine is then looked up in memory.
bool all_rows_cost_less(int64_t n, int64_t d, const Groups& groups) {
  const double pairs = 0.5 * groups.count * groups.size * (groups.size - 1);
  return 0.5 * n * (n + kTile) * (d + 16) + pairs * 32 < pairs * (1.5 * d + 16);
}

}  // namespace

template <class T>
void scale_rows(std::vector<Set<T>>& sets, int64_t n, const char* op, const char* name) {
  const auto row_scales = PAMKD_PICK(row_scales<T>);
  for (size_t l = 0; l < sets.size(); l++) {
    Set<T>& set = sets[l];
    First bad;
    std::atomic<bool> any_large = false;
    parallel_for(0, n, grain(set.d), [&](int64_t begin, int64_t end) {
      bool large = false;
      const int64_t row = row_scales(set.e + begin * set.d, end - begin, set.d, set.scale + begin, &large);
      if (row >= 0) bad.report(begin + row);
      if (large) any_large = true;
    });
    if (bad.any()) {
      const std::string matrix = sets.size() > 1 ? " of matrix " + std::to_string(l) : "";
      invalid(op, ": ", name, " row ", bad.position(), matrix, " holds NaN or infinity; needed are finite embeddings");
    }
    if (any_large) {
      set.unit = std::shared_ptr<T[]>(new T[static_cast<size_t>(n * set.d + n)]);
      for (int64_t i = 0; i < n * set.d; i++) set.unit[i] = set.e[i] * set.scale[i / set.d];
      std::fill_n(set.unit.get() + n * set.d, n, T(1));
    }
  }
}

template <class T>
void cosines(const Set<T>& set, int64_t n, bool both, T* cosine) {
  const auto cosine_tile = PAMKD_PICK(cosine_tile<T>);
  const int64_t side = ceil_div(n, kTile);
  parallel_for(0, side * (side + 1) / 2, grain(kTile * kTile * set.d), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++) {
      int64_t j = 0;  // tile t is (i, j) with i <= j, column by column
      while ((j + 1) * (j + 2) / 2 <= t) j++;
      const int64_t i = t - j * (j + 1) / 2;
      cosine_tile(set.rows(), set.scales(n), n, set.d, i * kTile, j * kTile, both, cosine);
    }
  });
}

template <class T>
void min_similarities(const std::vector<Set<T>>& sets, int64_t n, const Groups& groups, const char* op, T* similarity, int64_t* pairs) {
  const int64_t pairs_each = groups.size * (groups.size - 1) / 2;
  First bad;
  std::unique_ptr<T[]> cosine;
  for (size_t l = 0; l < sets.size() && !bad.any(); l++) {
    const Set<T>& set = sets[l];
    T* to = similarity + l * groups.count;
    int64_t* pairs_to = pairs + l * groups.count * 2;
    if (all_rows_cost_less(n, set.d, groups)) {
      if (!cosine) cosine = scratch<T>(n * n);
      cosines(set, n, false, cosine.get());
      parallel_for(0, groups.count, grain(8 * pairs_each), [&](int64_t begin, int64_t end) {
        const auto rows = scratch<int64_t>(groups.size);
        const int64_t g = PAMKD_PICK(min_from_cosines<T>)(cosine.get(), n, groups, begin, end, rows.get(), to, pairs_to);
        if (g >= 0) bad.report(g);
      });
    } else {
      parallel_for(0, groups.count, grain(pairs_each * set.d), [&](int64_t begin, int64_t end) {
        const auto rows = scratch<int64_t>(groups.size);
        const auto products = scratch<T>(groups.size * groups.size);
        const int64_t g = PAMKD_PICK(min_from_rows<T>)(set.rows(), set.scales(n), n, set.d, groups, begin, end, rows.get(),
                                                       products.get(), to, pairs_to);
        if (g >= 0) bad.report(g);
      });
    }
  }
  if (!bad.any()) return;
  const int64_t g = bad.position();
  const int64_t* rows = groups.side[g % groups.sides] + g / groups.sides * groups.size;
  const int64_t row = *std::find_if(rows, rows + groups.size, [&](int64_t value) { return value < 0 || value >= n; });
  invalid(op, ": group index ", row, " is out of range for ", n, " embeddings");
}

template <class T>
void weighted_rows(const Set<T>& set, int64_t n, const T* weight, T* out) {
  const int64_t width = PAMKD_PICK(panel_width<T>)();
  parallel_for(0, ceil_div(set.d, width), grain(n * n * width), [&](int64_t begin, int64_t end) {
    const auto panel = scratch<T>(n * width);
    for (int64_t c = begin; c < end; c++)
      PAMKD_PICK(weighted_panel<T>)(weight, set.scale, set.e, n, set.d, c * width, std::min(set.d, (c + 1) * width), panel.get(), out);
  });
}

// d cos_ij / d e_i = scale_i (scale_j e_j - cos_ij scale_i e_i), the second term only where the norm is not clamped.
template <class T>
void min_similarity_gradient(const Set<T>& set, int64_t n, int64_t count, const T* grad, const T* similarity, const int64_t* pairs,
                             const char* op, T* gradient) {
  int64_t active = 0;
  for (int64_t g = 0; g < count; g++) {
    if (grad[g] == 0) continue;
    active++;
    for (const int64_t row : {pairs[2 * g], pairs[2 * g + 1]})
      if (row < 0 || row >= n) invalid(op, ": row ", row, " of a pair is out of range for ", n, " embeddings");
  }
  const int64_t d = set.d;
  const bool all = 4 * active > n * n;
  const auto weight = scratch<T>(all ? n * n : 0);
  // A task owns a range of rows; it reads all pairs and keeps its rows' ends of them, in the order of the groups.
  parallel_for(0, n, std::max(grain(2 * active * d / n), ceil_div(n, 64)), [&](int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    std::vector<double> own(static_cast<size_t>(rows));
    std::vector<int64_t> from(static_cast<size_t>(rows) + 1);
    const auto for_ends = [&](const auto& f) {
      for (int64_t g = 0; g < count; g++) {
        if (grad[g] == 0) continue;
        const int64_t i = pairs[2 * g], j = pairs[2 * g + 1];
        if (i >= begin && i < end) f(g, i, j);
        if (j >= begin && j < end) f(g, j, i);
      }
    };
    const auto own_factor = [&](int64_t i) { return clamped(set.scale[i]) ? T(0) : static_cast<T>(-own[i - begin] * set.scale[i]); };
    if (all) {
      std::fill(weight.get() + begin * n, weight.get() + end * n, T(0));
      for_ends([&](int64_t g, int64_t i, int64_t j) {
        weight[i * n + j] += grad[g] * set.scale[j];
        own[i - begin] += static_cast<double>(grad[g]) * similarity[g];
      });
      for (int64_t i = begin; i < end; i++) weight[i * n + i] += own_factor(i);
      return;
    }
    for_ends([&](int64_t, int64_t i, int64_t) { from[i - begin + 1]++; });
    for (int64_t i = 0; i < rows; i++) from[i + 1] += from[i] + 1;  // one more for the row itself
    const auto partner = scratch<int32_t>(from[rows]);
    const auto factor = scratch<T>(from[rows]);
    std::vector<int64_t> next(from.begin(), from.end() - 1);
    for_ends([&](int64_t g, int64_t i, int64_t j) {
      const int64_t place = next[i - begin]++;
      partner[place] = static_cast<int32_t>(j);
      factor[place] = grad[g] * set.scale[j];
      own[i - begin] += static_cast<double>(grad[g]) * similarity[g];
    });
    for (int64_t i = begin; i < end; i++) {
      const int64_t at = from[i - begin], last = next[i - begin];
      partner[last] = static_cast<int32_t>(i);
      factor[last] = own_factor(i);
      PAMKD_PICK(combine_rows<T>)(set.e, d, 0, d, partner.get() + at, factor.get() + at, last + 1 - at, set.scale[i], gradient + i * d);
    }
  });
  if (all) weighted_rows(set, n, weight.get(), gradient);
}

template <class T>
void hinges(const T* teacher, const T* student, int64_t teachers, int64_t students, int64_t pairs, double eps, double factor, T* loss) {
  const int64_t parts = ceil_div(pairs, kHingePairs), all = teachers * students * parts;
  const auto partial = scratch<double>(all);
  parallel_for(0, all, grain(4 * std::min(pairs, kHingePairs)), [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; a++) {
      const int64_t k = a / parts / teachers, j = a / parts % teachers, p = a % parts * kHingePairs;
      partial[a] = PAMKD_PICK(hinge<T>)(teacher + (j * pairs + p) * 2, student + (k * pairs + p) * 2, std::min(kHingePairs, pairs - p),
                                        static_cast<T>(eps));
    }
  });
  for (int64_t a = 0; a < teachers * students; a++) {
    double total = 0;
    for (int64_t part = 0; part < parts; part++) total += partial[a * parts + part];
    loss[a] = static_cast<T>(total * factor);
  }
}

template <class T>
void hinge_gradients(const T* teacher, const T* student, const T* grad, int64_t teachers, int64_t students, int64_t pairs, double eps,
                     T* d_teacher, T* d_student) {
  parallel_for(0, pairs, grain(8 * teachers * students), [&](int64_t begin, int64_t end) {
    PAMKD_PICK(hinge_gradients<T>)(teacher, student, grad, teachers, students, pairs, begin, end, static_cast<T>(eps), d_teacher,
                                   d_student);
  });
}

#define PAMKD_INSTANTIATE(T)                                                                                                  \
  template void scale_rows(std::vector<Set<T>>&, int64_t, const char*, const char*);                                          \
  template void cosines(const Set<T>&, int64_t, bool, T*);                                                                    \
  template void min_similarities(const std::vector<Set<T>>&, int64_t, const Groups&, const char*, T*, int64_t*);              \
  template void min_similarity_gradient(const Set<T>&, int64_t, int64_t, const T*, const T*, const int64_t*, const char*, T*); \
  template void weighted_rows(const Set<T>&, int64_t, const T*, T*);                                                          \
  template void hinges(const T*, const T*, int64_t, int64_t, int64_t, double, double, T*);                                    \
  template void hinge_gradients(const T*, const T*, const T*, int64_t, int64_t, int64_t, double, T*, T*);
PAMKD_INSTANTIATE(float)
PAMKD_INSTANTIATE(double)

}  // namespace pamkd::grs
