// What every operation's CPU entry needs: the stable tensor types, and one dispatch over the two floating-point types.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <sstream>
#include <string>

namespace pamkd {

using torch::stable::Tensor;
using torch::headeronly::ScalarType;

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
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, op,
                  ": the CPU kernel takes float32 and float64");
  return t.scalar_type() == ScalarType::Float ? f(float{}) : f(double{});
}

inline void check_same(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), op, ": ", name, " and the other tensors differ in dtype");
}

}  // namespace pamkd
