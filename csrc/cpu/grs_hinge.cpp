// grs_hinge: loss [ks, kt] = sum_p [t_p != 0] max(0, eps - t_p s_p), t and s the differences of a pair's two similarities.
#include <tuple>

#include "cpu/grs.h"

namespace pamkd {
namespace {

using torch::stable::new_empty;

void check(const char* op, const Tensor& teacher, const Tensor& student) {
  check_shape(op, "teacher", teacher, {-1, -1, 2});
  check_shape(op, "student", student, {-1, teacher.size(1), 2});
  check_same(op, "student", student, teacher);
}

Tensor forward(const Tensor& teacher_, const Tensor& student_, double eps) {
  constexpr const char* op = "grs_hinge";
  check(op, teacher_, student_);
  const Tensor teacher = dense(teacher_), student = dense(student_);
  const int64_t kt = teacher.size(0), ks = student.size(0), pairs = teacher.size(1);
  const Tensor loss = new_empty(teacher, {ks, kt});
  dispatch_floating(op, teacher, [&](auto zero) {
    using T = decltype(zero);
    grs::hinges(teacher.const_data_ptr<T>(), student.const_data_ptr<T>(), kt, ks, pairs, eps, 1, loss.mutable_data_ptr<T>());
  });
  return loss;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& teacher_, const Tensor& student_, double eps) {
  constexpr const char* op = "grs_hinge_backward";
  check(op, teacher_, student_);
  const Tensor grad = dense(grad_), teacher = dense(teacher_), student = dense(student_);
  const int64_t kt = teacher.size(0), ks = student.size(0), pairs = teacher.size(1);
  check_same(op, "grad", grad, teacher);
  check_shape(op, "grad", grad, {ks, kt});
  const Tensor d_teacher = new_empty(teacher, {kt, pairs, 2}), d_student = new_empty(student, {ks, pairs, 2});
  dispatch_floating(op, teacher, [&](auto zero) {
    using T = decltype(zero);
    grs::hinge_gradients(teacher.const_data_ptr<T>(), student.const_data_ptr<T>(), grad.const_data_ptr<T>(), kt, ks, pairs, eps,
                         d_teacher.mutable_data_ptr<T>(), d_student.mutable_data_ptr<T>());
  });
  return {d_teacher, d_student};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("grs_hinge", TORCH_BOX(&forward));
  m.impl("grs_hinge_backward", TORCH_BOX(&backward));
}

}  // namespace pamkd
