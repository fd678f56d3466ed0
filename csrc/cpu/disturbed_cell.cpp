// pamkd::disturbed_cell_forward and pamkd::disturbed_cell_backward on the CPU: mixed_cell.cpp with draws inside.
#include <torch/csrc/stable/library.h>

#include "cpu/mixed_cell.h"

namespace pamkd {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& s0, const std::optional<Tensor>& s1, const Tensor& weights, const Tensor& mix,
                                           std::vector<int64_t> code, std::vector<int64_t> draws, bool keep) {
  return cell_forward(s0, s1, weights, mix, code, DrawSpec(draws), keep);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& s0, const std::optional<Tensor>& s1, const Tensor& weights,
                                                    const Tensor& mix, const Tensor& out, const Tensor& q, const Tensor& statistics,
                                                    std::vector<int64_t> code, std::vector<int64_t> draws, bool need_s0, bool need_s1,
                                                    bool need_weights, bool need_mix) {
  return cell_backward(grad, s0, s1, weights, mix, out, q, statistics, code, DrawSpec(draws), need_s0, need_s1, need_weights, need_mix);
}

}  // namespace
}  // namespace pamkd

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("disturbed_cell_forward", TORCH_BOX(&pamkd::forward));
  m.impl("disturbed_cell_backward", TORCH_BOX(&pamkd::backward));
}
