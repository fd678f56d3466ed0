#include "cpu/grs.h"

#include <algorithm>
#include <atomic>

#include "cpu/buffer.h"

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

// Products of all rows are n^2 / 2, those of the groups count * size (size - 1) / 2; each times what a product costs in
// its kernel: blocks of a tile share more loads, but every cosine is then looked up in memory.
bool all_rows_cost_less(int64_t n, int64_t d, const Groups& groups) {
  if (std::max(n, groups.size) > 46340) return false;  // indices of the cosines, and of pairs of a group's rows, are int32_t
  const double pairs = 0.5 * groups.count * groups.size * (groups.size - 1);
  return 0.5 * n * (n + 32) * (d + 16) + pairs * 32 < pairs * (1.5 * d + 16);
}

// The first group of begin .. end with a row outside 0 .. n - 1 is reported.
bool rows_exist(const Groups& groups, int64_t n, int64_t begin, int64_t end, First& bad) {
  for (int64_t g = begin; g < end; g++) {
    const int64_t* rows = groups.side[g & groups.last_side] + (g >> groups.last_side) * groups.size;
    if (std::any_of(rows, rows + groups.size, [&](int64_t row) { return row < 0 || row >= n; })) return bad.report(g), false;
  }
  return true;
}

template <class T>
void min_from_rows(const Set<T>& set, int64_t n, const Groups& groups, First& bad, T* similarity, int64_t* pairs) {
  const int64_t d = set.d, area = groups.size * groups.size, work = grain(area * d / 2);
  const T *e = set.rows(), *scale = set.scales(n);
  constexpr int64_t kBytes = 1 << 22, kWidth = 512;
  if (n * d * static_cast<int64_t>(sizeof(T)) <= kBytes || groups.count * groups.size < 4 * n) {
    parallel_for(0, groups.count, work, [&](int64_t begin, int64_t end) {
      if (!rows_exist(groups, n, begin, end, bad)) return;
      const Buffer<T> products(area);
      for (int64_t g = begin; g < end; g++) {
        PAMKD_PICK(group_products<T>)(e, d, d, groups, g, g + 1, false, products.get());
        PAMKD_PICK(min_of_products<T>)(products.get(), scale, groups, g, g + 1, similarity, pairs);
      }
    });
    return;
  }
  // The rows of a group lie far apart in a large matrix, a memory page each. Some columns of all rows, packed, are few pages
  // and stay in a cache while many groups read them.
  const int64_t most = std::min(groups.count, std::max<int64_t>(1, 4 * kBytes / (area * static_cast<int64_t>(sizeof(T)))));
  const Buffer<T> panel(n * kWidth), products(most * area);
  for (int64_t from = 0; from < groups.count && !bad.any(); from += most) {
    const int64_t to = std::min(groups.count, from + most);
    if (!rows_exist(groups, n, from, to, bad)) return;
    for (int64_t k = 0; k < d; k += kWidth) {
      const int64_t columns = std::min(kWidth, d - k);
      parallel_for(0, n, grain(columns), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) std::copy_n(e + i * d + k, columns, panel.get() + i * kWidth);
      });
      parallel_for(from, to, work, [&](int64_t begin, int64_t end) {
        PAMKD_PICK(group_products<T>)(panel.get(), kWidth, columns, groups, begin, end, k > 0, products.get() + (begin - from) * area);
      });
    }
    parallel_for(from, to, grain(area), [&](int64_t begin, int64_t end) {
      PAMKD_PICK(min_of_products<T>)(products.get() + (begin - from) * area, scale, groups, begin, end, similarity, pairs);
    });
  }
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
  const int64_t width = PAMKD_PICK(panel_width<T>)(), panels = ceil_div(n, width);
  parallel_for(0, panels, grain(n * width / 2 * set.d), [&](int64_t begin, int64_t end) {
    const Buffer<T> panel(set.d * width);
    for (int64_t t = begin; t < end; t++) {
      const int64_t p = t % 2 ? panels - 1 - t / 2 : t / 2;  // short and long ones in turn: every thread gets as much
      PAMKD_PICK(cosine_panel<T>)(set.rows(), set.scales(n), n, set.d, p * width, both, panel.get(), cosine);
    }
  });
}

template <class T>
void min_similarities(const std::vector<Set<T>>& sets, int64_t n, const Groups& groups, const char* op, T* similarity, int64_t* pairs) {
  const int64_t pairs_each = groups.size * (groups.size - 1) / 2;
  First bad;
  Buffer<T> cosine;
  for (size_t l = 0; l < sets.size() && !bad.any(); l++) {
    const Set<T>& set = sets[l];
    T* to = similarity + l * groups.count;
    int64_t* pairs_to = pairs + l * groups.count * 2;
    if (all_rows_cost_less(n, set.d, groups)) {
      if (!cosine) cosine = Buffer<T>(n * n);
      cosines(set, n, false, cosine.get());
      parallel_for(0, groups.count, grain(8 * pairs_each), [&](int64_t begin, int64_t end) {
        const Buffer<int32_t> rows(groups.size * kGroupsAtOnce);
        const int64_t g = PAMKD_PICK(min_from_cosines<T>)(cosine.get(), n, groups, begin, end, rows.get(), to, pairs_to);
        if (g >= 0) bad.report(g);
      });
    } else {
      min_from_rows(set, n, groups, bad, to, pairs_to);
    }
  }
  if (!bad.any()) return;
  const int64_t g = bad.position();
  const int64_t* rows = groups.side[g & groups.last_side] + (g >> groups.last_side) * groups.size;
  const int64_t row = *std::find_if(rows, rows + groups.size, [&](int64_t value) { return value < 0 || value >= n; });
  invalid(op, ": group index ", row, " is out of range for ", n, " embeddings");
}

template <class T>
void weighted_rows(const Set<T>& set, int64_t n, const T* weight, T* out) {
  const int64_t width = PAMKD_PICK(panel_width<T>)();
  parallel_for(0, ceil_div(set.d, width), grain(n * n * width), [&](int64_t begin, int64_t end) {
    const Buffer<T> panel(n * width);
    for (int64_t c = begin; c < end; c++)
      PAMKD_PICK(weighted_panel<T>)(weight, set.scale, set.e, n, set.d, c * width, std::min(set.d, (c + 1) * width), panel.get(), out);
  });
}

// d cos_ij / d e_i = scale_i (scale_j e_j - cos_ij scale_i e_i), the second term only where the norm is not clamped.
template <class T>
void min_similarity_gradient(const Set<T>& set, int64_t n, int64_t count, const T* grad, const T* similarity, const int64_t* pairs,
                             const char* op, T* gradient) {
  const int64_t d = set.d;
  if (n == 0) return;
  // What malloc maps by itself is fresh: touching it page by page costs as much as computing it.
  const auto bytes = static_cast<size_t>(n * d) * sizeof(T);
  if (bytes >= size_t{1} << 25) prefer_huge_pages(gradient, bytes);
  // Row i has the partners partner[from[i]] .. and itself as the last one.
  std::vector<int64_t> from(static_cast<size_t>(n) + 1);
  for (int64_t i = 0; i < n; i++) from[i + 1] = 1;
  for (int64_t g = 0; g < count; g++) {
    if (grad[g] == 0) continue;
    for (const int64_t row : {pairs[2 * g], pairs[2 * g + 1]}) {
      if (row < 0 || row >= n) invalid(op, ": row ", row, " of a pair is out of range for ", n, " embeddings");
      from[row + 1]++;
    }
  }
  for (int64_t i = 0; i < n; i++) from[i + 1] += from[i];
  const int64_t entries = from[n];
  const Buffer<int32_t> partners(entries);
  const Buffer<T> factors(entries);
  int32_t* const partner = partners.get();
  T* const factor = factors.get();
  // A task owns a range of rows; it reads all pairs and keeps its rows' ends of them, in the order of the groups.
  parallel_for(0, n, std::max(grain(4 * entries / n), ceil_div(n, 64)), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> next(from.begin() + begin, from.begin() + end);
    std::vector<double> own(static_cast<size_t>(end - begin));
    const auto keep = [&](int64_t g, int64_t i, int64_t j) {
      if (i < begin || i >= end) return;
      const int64_t place = next[i - begin]++;
      partner[place] = static_cast<int32_t>(j);
      factor[place] = grad[g] * set.scale[j];
      own[i - begin] += static_cast<double>(grad[g]) * similarity[g];
    };
    for (int64_t g = 0; g < count; g++) {
      if (grad[g] == 0) continue;
      keep(g, pairs[2 * g], pairs[2 * g + 1]);
      keep(g, pairs[2 * g + 1], pairs[2 * g]);
    }
    for (int64_t i = begin; i < end; i++) {
      partner[from[i + 1] - 1] = static_cast<int32_t>(i);
      factor[from[i + 1] - 1] = clamped(set.scale[i]) ? T(0) : static_cast<T>(-own[i - begin] * set.scale[i]);
    }
  });
  const auto combine = [&](const T* e, int64_t stride, int64_t columns, int64_t i, T* out) {
    const int64_t at = from[i];
    PAMKD_PICK(combine_rows<T>)(e, stride, columns, partner + at, factor + at, from[i + 1] - at, set.scale[i], out);
  };
  const int64_t width = PAMKD_PICK(combine_width<T>)(), panels = ceil_div(d, width);
  if (2 * entries > n * n) {  // so many that a matrix product is faster
    const Buffer<T> weight(n * n);
    parallel_for(0, n, grain(n), [&](int64_t begin, int64_t end) {
      std::fill(weight.get() + begin * n, weight.get() + end * n, T(0));
      for (int64_t i = begin; i < end; i++)
        for (int64_t k = from[i]; k < from[i + 1]; k++) weight.get()[i * n + partner[k]] += factor[k];
    });
    weighted_rows(set, n, weight.get(), gradient);
  } else if (entries >= 8 * n && n * d * static_cast<int64_t>(sizeof(T)) > 1 << 18 && panels >= torch::stable::get_num_threads()) {
    // Rows are read often and do not fit the cache of a core: panels of their columns do.
    parallel_for(0, panels, grain(entries * width), [&](int64_t begin, int64_t end) {
      const Buffer<T> panel(n * width);
      for (int64_t p = begin; p < end; p++) {
        const int64_t columns = std::min(width, d - p * width);
        for (int64_t i = 0; i < n; i++) std::copy_n(set.e + i * d + p * width, columns, panel.get() + i * width);
        for (int64_t i = 0; i < n; i++) combine(panel.get(), width, columns, i, gradient + i * d + p * width);
      }
    });
  } else {
    parallel_for(0, n, grain(entries * d / n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) combine(set.e, d, d, i, gradient + i * d);
    });
  }
}

template <class T>
void hinges(const T* teacher, const T* student, int64_t teachers, int64_t students, int64_t pairs, double eps, double factor, T* loss) {
  const int64_t parts = ceil_div(pairs, kHingePairs), all = teachers * students * parts;
  const Buffer<double> partial(all);
  const auto hinge = PAMKD_PICK(hinge<T>);
  parallel_for(0, all, grain(4 * std::min(pairs, kHingePairs)), [&](int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; a++) {
      const int64_t k = a / parts / teachers, j = a / parts % teachers, p = a % parts * kHingePairs;
      partial.get()[a] = hinge(teacher + (j * pairs + p) * 2, student + (k * pairs + p) * 2, std::min(kHingePairs, pairs - p), static_cast<T>(eps));
    }
  });
  for (int64_t a = 0; a < teachers * students; a++) {
    double total = 0;
    for (int64_t part = 0; part < parts; part++) total += partial.get()[a * parts + part];
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
