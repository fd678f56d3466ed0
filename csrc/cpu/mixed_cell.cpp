// pamkd::mixed_cell_forward and pamkd::mixed_cell_backward on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/mixed_cell.h"

#include "common/check.h"
#include "cpu/cell_backward.h"
#include "cpu/cell_forward.h"

namespace pamkd {
namespace {

void check(const Tensor& tensor, const char* name, ScalarType type, std::initializer_list<int64_t> shape) {
  bool fits = tensor.dim() == int64_t(shape.size()) && tensor.scalar_type() == type;
  Index axis = 0;
  for (int64_t size : shape) fits = fits && (size < 0 || tensor.size(axis) == size), axis++;
  if (!fits) throw std::invalid_argument(std::string("mixed_cell: ") + name + " does not fit the encoded spec or the other tensors");
}

CellPlan make_plan(const CellSpec& spec, const Tensor& s0, const std::optional<Tensor>& s1, const Tensor& weights, const Tensor& mix) {
  check(s0, "s0", s0.scalar_type(), {-1, spec.channels, -1, -1});
  if (s1.has_value() != (spec.inputs == 2)) throw std::invalid_argument("mixed_cell: s1 is given exactly where the spec has two inputs");
  if (s1) check(*s1, "s1", s0.scalar_type(), {s0.size(0), spec.channels, s0.size(2), s0.size(3)});
  check(weights, "weights", s0.scalar_type(), {spec.num_weights});
  check(mix, "mix", s0.scalar_type(), {int64_t(spec.edges.size()), spec.columns});
  const CellPlan plan(spec, s0.size(0), s0.size(2), s0.size(3));
  if (plan.n * plan.node_pixels() < 2) throw std::invalid_argument("mixed_cell: s0 has fewer than two values per channel and node");
  if (spec.reduction && spec.partial > 1 && (plan.h % 2 != 0 || plan.w % 2 != 0))
    throw std::invalid_argument("mixed_cell: s0 has odd sizes in a reduction cell with partial channels");
  return plan;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cell_forward(const Tensor& s0, const std::optional<Tensor>& s1, const Tensor& weights, const Tensor& mix,
                                                const std::vector<int64_t>& code, const DrawSpec& drawn, bool keep) {
  const CellSpec spec(code);
  const CellPlan plan = make_plan(spec, s0, s1, weights, mix);
  const Tensor x0 = rows(s0), x1 = s1 ? rows(*s1) : x0, flat = torch::stable::contiguous(weights), mixture = torch::stable::contiguous(mix);
  Tensor out = empty_map(s0, plan.n, spec.nodes * spec.channels, plan.node_h, plan.node_w);
  Tensor q = torch::stable::new_empty(s0, {keep ? plan.separable * plan.map() : 0});
  Tensor statistics = torch::stable::new_empty(s0, {plan.statistics()});
  dispatch_floating("mixed_cell", s0, [&](auto zero) {
    using T = decltype(zero);
    std::memset(data<T>(statistics), 0, plan.statistics() * sizeof(T));
    prefer_huge_pages(data<T>(q), q.numel() * sizeof(T));
    const CellRun<T> run(plan, data<T>(flat), data<T>(mixture), data<T>(statistics), drawn);
    const T* const inputs[2] = {data<T>(x0), data<T>(x1)};
    cell_forward<T>(run, inputs, data<T>(out), keep ? data<T>(q) : nullptr);
  });
  return {out, q, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cell_backward(const Tensor& grad, const Tensor& s0, const std::optional<Tensor>& s1,
                                                         const Tensor& weights, const Tensor& mix, const Tensor& out, const Tensor& q,
                                                         const Tensor& statistics, const std::vector<int64_t>& code, const DrawSpec& drawn,
                                                         bool need_s0, bool need_s1, bool need_weights, bool need_mix) {
  const CellSpec spec(code);
  const CellPlan plan = make_plan(spec, s0, s1, weights, mix);
  for (const Tensor& map : {grad, out})
    check(map, "grad", s0.scalar_type(), {plan.n, spec.nodes * spec.channels, plan.node_h, plan.node_w});
  check(q, "q", s0.scalar_type(), {plan.separable * plan.map()});
  check(statistics, "statistics", s0.scalar_type(), {plan.statistics()});
  const Tensor x0 = rows(s0), x1 = s1 ? rows(*s1) : x0, g = rows(grad), y = rows(out);
  const Tensor flat = torch::stable::contiguous(weights), mixture = torch::stable::contiguous(mix);
  const auto input = [&](bool needed) {
    return needed ? empty_map(s0, plan.n, spec.channels, plan.h, plan.w) : torch::stable::new_empty(s0, {0});
  };
  Tensor d0 = input(need_s0), d1 = input(need_s1 && s1);
  Tensor dweights = torch::stable::new_zeros(s0, {need_weights ? spec.num_weights : 0});
  Tensor dmix = need_mix ? torch::stable::new_zeros(s0, {mix.size(0), mix.size(1)}) : torch::stable::new_empty(s0, {0});
  dispatch_floating("mixed_cell", s0, [&](auto zero) {
    using T = decltype(zero);
    Buffer<T> own(plan.statistics());
    std::memcpy(own.get(), data<T>(statistics), plan.statistics() * sizeof(T));
    const CellRun<T> run(plan, data<T>(flat), data<T>(mixture), own.get(), drawn);
    const T* const inputs[2] = {data<T>(x0), data<T>(x1)};
    const CellGradients<T> to{{need_s0 ? data<T>(d0) : nullptr, need_s1 && s1 ? data<T>(d1) : nullptr},
                              need_weights ? data<T>(dweights) : nullptr,
                              need_mix ? data<T>(dmix) : nullptr};
    CellBackward<T>(run, inputs, data<T>(g), data<T>(y), data<T>(q), to)();
  });
  return {d0, d1, dweights, dmix};
}

namespace {

// Noise without a seed would be the same numbers in all cells.
void require_no_noise(const CellSpec& spec) {
  for (const Edge& edge : spec.edges)
    for (const Candidate& candidate : edge.candidates)
      if (candidate.op == Op::noise) throw std::invalid_argument("mixed_cell: noise is drawn: call disturbed_cell");
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& s0, const std::optional<Tensor>& s1, const Tensor& weights, const Tensor& mix,
                                           std::vector<int64_t> code, bool keep) {
  require_no_noise(CellSpec(code));
  return cell_forward(s0, s1, weights, mix, code, DrawSpec(), keep);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& s0, const std::optional<Tensor>& s1, const Tensor& weights,
                                                    const Tensor& mix, const Tensor& out, const Tensor& q, const Tensor& statistics,
                                                    std::vector<int64_t> code, bool need_s0, bool need_s1, bool need_weights, bool need_mix) {
  require_no_noise(CellSpec(code));
  return cell_backward(grad, s0, s1, weights, mix, out, q, statistics, code, DrawSpec(), need_s0, need_s1, need_weights, need_mix);
}

}  // namespace
}  // namespace pamkd

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("mixed_cell_forward", TORCH_BOX(&pamkd::forward));
  m.impl("mixed_cell_backward", TORCH_BOX(&pamkd::backward));
}
