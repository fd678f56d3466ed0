#include "cpu/hinge_rows.h"

namespace pamkd {
namespace PAMKD_LEVEL {

template <class T>
double hinge(const T* teacher, const T* student, int64_t pairs, T eps) {
  double total = 0;
  for (int64_t p = 0; p < 2 * pairs; p += 2) {
    const T t = teacher[p] - teacher[p + 1], value = eps - t * (student[p] - student[p + 1]);
    // Written so that a NaN is summed, as max(0, NaN) is NaN.
    total += t == 0 || value <= 0 ? T(0) : value;
  }
  return total;
}

template <class T>
void hinge_gradients(const T* teacher, const T* student, const T* grad, int64_t teachers, int64_t students, int64_t pairs, int64_t begin,
                     int64_t end, T eps, T* d_teacher, T* d_student) {
  for (int64_t p = begin; p < end; p++) {
    for (int64_t k = 0; k < students; k++) {
      const T* s = student + (k * pairs + p) * 2;
      T sum = 0;
      for (int64_t j = 0; j < teachers; j++) {
        const T* t = teacher + (j * pairs + p) * 2;
        const T order = t[0] - t[1], value = eps - order * (s[0] - s[1]);
        if (order != 0 && !(value <= 0)) sum -= grad[k * teachers + j] * order;
      }
      T* to = d_student + (k * pairs + p) * 2;
      to[0] = sum;
      to[1] = -sum;
    }
    for (int64_t j = 0; j < teachers; j++) {
      const T* t = teacher + (j * pairs + p) * 2;
      const T order = t[0] - t[1];
      T sum = 0;
      for (int64_t k = 0; k < students; k++) {
        const T* s = student + (k * pairs + p) * 2;
        const T difference = s[0] - s[1], value = eps - order * difference;
        if (order != 0 && !(value <= 0)) sum -= grad[k * teachers + j] * difference;
      }
      T* to = d_teacher + (j * pairs + p) * 2;
      to[0] = sum;
      to[1] = -sum;
    }
  }
}

#define PAMKD_INSTANTIATE(T) \
  template double hinge(const T*, const T*, int64_t, T); \
  template void hinge_gradients(const T*, const T*, const T*, int64_t, int64_t, int64_t, int64_t, int64_t, T, T*, T*);
PAMKD_INSTANTIATE(float)
PAMKD_INSTANTIATE(double)

}  // namespace PAMKD_LEVEL
}  // namespace pamkd
