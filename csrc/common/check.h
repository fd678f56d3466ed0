// What every operation's CPU entry needs: the stable tensor types, errors, and one dispatch over the two floating-point types.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

namespace pamkd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Raises ValueError with one sentence.
template <class... Parts>
[[noreturn]] void invalid(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::invalid_argument(sentence.str());
}

inline std::string shape_of(const Tensor& t) {
  std::ostringstream text;
  text << "[";
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << "]";
  return text.str();
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// f(T{}) with T = float or double; anything else is the caller's mistake.
template <class F>
auto dispatch_floating(const char* op, const Tensor& t, F&& f) {
  if (t.scalar_type() != ScalarType::Float && t.scalar_type() != ScalarType::Double) invalid(op, ": the CPU kernel takes float32 and float64");
  return t.scalar_type() == ScalarType::Float ? f(float{}) : f(double{});
}

inline void check_same(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  if (t.scalar_type() != like.scalar_type()) invalid(op, ": ", name, " and the other tensors differ in dtype");
}

// A size of -1 fits any.
inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> sizes) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (auto size = sizes.begin(); fits && size != sizes.end(); ++size, ++i) fits = *size < 0 || *size == t.size(i);
  if (fits) return;
  std::ostringstream needed;
  for (const int64_t size : sizes) needed << (needed.tellp() > 0 ? ", " : "") << (size < 0 ? "*" : std::to_string(size));
  invalid(op, ": ", name, " has shape ", shape_of(t), "; needed is [", needed.str(), "]");
}

// Row indices [G, R] of at least two rows each; their range is checked where they are read.
inline void check_groups(const char* op, const char* name, const Tensor& groups) {
  if (groups.dim() != 2 || groups.size(1) < 2 || groups.scalar_type() != ScalarType::Long)
    invalid(op, ": ", name, " has shape ", shape_of(groups), "; needed is int64 [G, R] with R of at least 2");
}

// Iterations that make a task worth its start, given the multiply-adds of one.
inline int64_t grain(int64_t work) { return 65536 / (work + 1) + 1; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pamkd
