// grs_hinge: loss [ks, kt] = sum_p [t_p != 0] max(0, eps - t_p s_p), t and s the differences of a pair's two similarities.
#include <tuple>
#include <vector>

#include "common/check.h"

namespace pamkd {
namespace {

constexpr const char* kOp = "grs_hinge";

void check(const Tensor& teacher, const Tensor& student) {
  STD_TORCH_CHECK(teacher.dim() == 3 && teacher.size(2) == 2, kOp, ": teacher has shape ", shape_of(teacher), "; needed is [Kt, P, 2]");
  STD_TORCH_CHECK(student.dim() == 3 && student.size(2) == 2 && student.size(1) == teacher.size(1), kOp, ": student has shape ",
                  shape_of(student), "; needed is [Ks, ", teacher.size(1), ", 2]");
  check_same(kOp, "student", student, teacher);
}

Tensor forward(const Tensor& teacher_, const Tensor& student_, double eps) {
  check(teacher_, student_);
  const Tensor teacher = dense(teacher_), student = dense(student_);
  const int64_t kt = teacher.size(0), ks = student.size(0), pairs = teacher.size(1);
  const Tensor out = torch::stable::new_empty(teacher, {ks, kt});
  dispatch_floating(kOp, teacher, [&](auto zero) {
    using T = decltype(zero);
    const T *t = teacher.const_data_ptr<T>(), *s = student.const_data_ptr<T>();
    T* o = out.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, ks * kt, 1 + 65536 / (pairs + 1), [&](int64_t from, int64_t to) {
      for (int64_t at = from; at < to; ++at) {
        const T *a = t + at % kt * pairs * 2, *b = s + at / kt * pairs * 2;
        double total = 0;
        for (int64_t p = 0; p < pairs; ++p) {
          const T dt = a[2 * p] - a[2 * p + 1], ds = b[2 * p] - b[2 * p + 1], value = T(eps) - dt * ds;
          if (dt != T(0) && value > T(0)) total += double(value);
        }
        o[at] = T(total);
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& teacher_, const Tensor& student_, double eps) {
  check(teacher_, student_);
  const Tensor grad = dense(grad_), teacher = dense(teacher_), student = dense(student_);
  check_same("grs_hinge_backward", "grad", grad, teacher);
  const int64_t kt = teacher.size(0), ks = student.size(0), pairs = teacher.size(1);
  const Tensor grad_teacher = torch::stable::empty_like(teacher), grad_student = torch::stable::empty_like(student);
  dispatch_floating("grs_hinge_backward", teacher, [&](auto zero) {
    using T = decltype(zero);
    const T *t = teacher.const_data_ptr<T>(), *s = student.const_data_ptr<T>(), *g = grad.const_data_ptr<T>();
    T *gt = grad_teacher.mutable_data_ptr<T>(), *gs = grad_student.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, pairs, 1 + 16384 / (kt * ks + 1), [&](int64_t from, int64_t to) {
      std::vector<T> dt(kt), ds(ks), out(kt + ks);
      for (int64_t p = from; p < to; ++p) {
        for (int64_t i = 0; i < kt; ++i) dt[i] = t[2 * (i * pairs + p)] - t[2 * (i * pairs + p) + 1];
        for (int64_t k = 0; k < ks; ++k) ds[k] = s[2 * (k * pairs + p)] - s[2 * (k * pairs + p) + 1];
        out.assign(kt + ks, T(0));
        for (int64_t k = 0; k < ks; ++k)
          for (int64_t i = 0; i < kt; ++i)
            if (dt[i] != T(0) && T(eps) - dt[i] * ds[k] > T(0)) {
              out[i] -= g[k * kt + i] * ds[k];
              out[kt + k] -= g[k * kt + i] * dt[i];
            }
        for (int64_t i = 0; i < kt; ++i) gt[2 * (i * pairs + p)] = out[i], gt[2 * (i * pairs + p) + 1] = -out[i];
        for (int64_t k = 0; k < ks; ++k) gs[2 * (k * pairs + p)] = out[kt + k], gs[2 * (k * pairs + p) + 1] = -out[kt + k];
      }
    });
  });
  return {grad_teacher, grad_student};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("grs_hinge", TORCH_BOX(&forward));
  m.impl("grs_hinge_backward", TORCH_BOX(&backward));
}

}  // namespace pamkd
