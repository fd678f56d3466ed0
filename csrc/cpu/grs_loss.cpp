// grs_loss: embeddings of teachers and students to their hinges, and the gradients of both.
#include <tuple>

#include "cpu/grs.h"

namespace pamkd {
namespace {

using torch::stable::new_empty;

// The number of matrices of [n, d] or [K, n, d].
int64_t matrices(const char* op, const char* name, const Tensor& embeddings) {
  if (embeddings.dim() != 2 && embeddings.dim() != 3)
    invalid(op, ": ", name, " has shape ", shape_of(embeddings), "; needed is [N, D] or [K, N, D]");
  return embeddings.dim() == 3 ? embeddings.size(0) : 1;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& teacher_, const Tensor& student_, const Tensor& groups_x,
                                                           const Tensor& groups_y, double eps, bool mean) {
  constexpr const char* op = "grs_loss";
  const int64_t kt = matrices(op, "e_teacher", teacher_), ks = matrices(op, "e_student", student_);
  const Tensor teacher = dense(teacher_), student = dense(student_), x = dense(groups_x), y = dense(groups_y);
  const int64_t n = teacher.size(teacher.dim() - 2), pairs = x.size(0);
  check_same(op, "e_student", student, teacher);
  if (student.size(student.dim() - 2) != n) invalid(op, ": e_teacher and e_student differ in their number of rows");
  check_groups(op, "groups_x", x);
  check_groups(op, "groups_y", y);
  check_shape(op, "groups_y", y, {pairs, x.size(1)});
  std::vector<int64_t> shape;
  if (student.dim() == 3) shape.push_back(ks);
  if (teacher.dim() == 3) shape.push_back(kt);
  const Tensor loss = new_empty(teacher, shape), similarity = new_empty(teacher, {kt + ks, pairs, 2}),
               rows = new_empty(x, {kt + ks, pairs, 2, 2}), teacher_scale = new_empty(teacher, {kt, n}),
               student_scale = new_empty(student, {ks, n});
  dispatch_floating(op, teacher, [&](auto zero) {
    using T = decltype(zero);
    auto sets = grs::sets_of<T>(teacher, teacher_scale), students = grs::sets_of<T>(student, student_scale);
    grs::scale_rows(sets, n, op, "e_teacher");
    grs::scale_rows(students, n, op, "e_student");
    sets.insert(sets.end(), students.begin(), students.end());
    const Groups groups{{x.const_data_ptr<int64_t>(), y.const_data_ptr<int64_t>()}, 1, 2 * pairs, x.size(1)};
    T* values = similarity.mutable_data_ptr<T>();
    grs::min_similarities(sets, n, groups, op, values, rows.mutable_data_ptr<int64_t>());
    grs::hinges(values, values + kt * pairs * 2, kt, ks, pairs, eps, mean ? 1.0 / pairs : 1.0, loss.mutable_data_ptr<T>());
  });
  return {loss, similarity, rows, teacher_scale, student_scale};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_, const Tensor& teacher_, const Tensor& student_, const Tensor& similarity_,
                                    const Tensor& rows_, const Tensor& teacher_scale_, const Tensor& student_scale_, double eps,
                                    bool mean, bool need_teacher, bool need_student) {
  constexpr const char* op = "grs_loss_backward";
  const int64_t kt = matrices(op, "e_teacher", teacher_), ks = matrices(op, "e_student", student_);
  const Tensor grad = dense(grad_), teacher = dense(teacher_), student = dense(student_), similarity = dense(similarity_),
               rows = dense(rows_), teacher_scale = dense(teacher_scale_), student_scale = dense(student_scale_);
  const int64_t n = teacher.size(teacher.dim() - 2);
  check_same(op, "grad", grad, teacher);
  check_shape(op, "similarity", similarity, {kt + ks, -1, 2});
  const int64_t pairs = similarity.size(1), count = 2 * pairs;
  check_shape(op, "pairs", rows, {kt + ks, pairs, 2, 2});
  check_shape(op, "teacher_scale", teacher_scale, {kt, n});
  check_shape(op, "student_scale", student_scale, {ks, n});
  if (grad.numel() != kt * ks) invalid(op, ": grad has shape ", shape_of(grad), "; needed is that of the loss");
  const Tensor d_teacher = need_teacher ? new_empty(teacher, teacher.sizes()) : new_empty(teacher, {0});
  const Tensor d_student = need_student ? new_empty(student, student.sizes()) : new_empty(student, {0});
  dispatch_floating(op, teacher, [&](auto zero) {
    using T = decltype(zero);
    const T* values = similarity.const_data_ptr<T>();
    std::vector<T> of_loss(grad.const_data_ptr<T>(), grad.const_data_ptr<T>() + kt * ks);
    if (mean)
      for (T& value : of_loss) value /= static_cast<T>(pairs);
    const auto d_values = std::make_unique_for_overwrite<T[]>(static_cast<size_t>((kt + ks) * count));
    grs::hinge_gradients(values, values + kt * count, of_loss.data(), kt, ks, pairs, eps, d_values.get(), d_values.get() + kt * count);
    const auto gradients = [&](const Tensor& e, const Tensor& scale, const Tensor& to, int64_t l) {
      T* out = to.mutable_data_ptr<T>();
      for (const grs::Set<T>& set : grs::sets_of<T>(e, scale)) {
        grs::min_similarity_gradient(set, n, count, d_values.get() + l * count, values + l * count,
                                     rows.const_data_ptr<int64_t>() + l * count * 2, op, out);
        out += n * set.d;
        l++;
      }
    };
    if (need_teacher) gradients(teacher, teacher_scale, d_teacher, 0);
    if (need_student) gradients(student, student_scale, d_student, kt);
  });
  return {d_teacher, d_student};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("grs_loss", TORCH_BOX(&forward));
  m.impl("grs_loss_backward", TORCH_BOX(&backward));
}

}  // namespace pamkd
