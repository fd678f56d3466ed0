// The mixed cell with and without draws inside; implemented in mixed_cell.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cpu/cell_draws.h"

namespace pamkd {

// Nodes, first halves of separable convolutions (where `keep`), statistics.
std::tuple<Tensor, Tensor, Tensor> cell_forward(const Tensor& s0, const std::optional<Tensor>& s1, const Tensor& weights, const Tensor& mix,
                                                const std::vector<int64_t>& code, const DrawSpec& drawn, bool keep);

// Gradients of s0, s1, weights and mix.
std::tuple<Tensor, Tensor, Tensor, Tensor> cell_backward(const Tensor& grad, const Tensor& s0, const std::optional<Tensor>& s1,
                                                         const Tensor& weights, const Tensor& mix, const Tensor& out, const Tensor& q,
                                                         const Tensor& statistics, const std::vector<int64_t>& code, const DrawSpec& drawn,
                                                         bool need_s0, bool need_s1, bool need_weights, bool need_mix);

}  // namespace pamkd
