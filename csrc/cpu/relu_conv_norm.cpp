// pamkd::relu_conv_norm_forward and pamkd::relu_conv_norm_backward on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "common/check.h"
#include "cpu/norm.h"

namespace pamkd {
namespace {

using Maybe = std::optional<Tensor>;

// Geometry of one call: x [n, in, h, w], relu, optional depthwise k x k, pointwise to `out` channels, BatchNorm.
struct Plan {
  Index n, in, out, h, w, k, stride, dilation, to_h, to_w, groups, to_groups;

  Plan(const Tensor& x, const Maybe& depthwise, const Tensor& pointwise, int64_t stride_, int64_t dilation_) {
    if (x.dim() != 4) throw std::invalid_argument("relu_conv_norm: x has shape " + shape_of(x) + "; needed is [n, c, h, w]");
    n = x.size(0), in = x.size(1), h = x.size(2), w = x.size(3);
    k = depthwise ? depthwise->size(-1) : 1, stride = stride_, dilation = dilation_;
    if (stride < 1 || stride > 2 || dilation < 1 || dilation > 2 || (!depthwise && (stride > 1 || dilation > 1)))
      throw std::invalid_argument("relu_conv_norm: stride and dilation are 1 or 2, and 1 without a depthwise convolution");
    if (depthwise && (depthwise->dim() != 4 || depthwise->size(0) != in || depthwise->size(1) != 1 || depthwise->size(2) != k || (k != 3 && k != 5)))
      throw std::invalid_argument("relu_conv_norm: depthwise has shape " + shape_of(*depthwise) + "; needed is [c, 1, k, k] with k 3 or 5");
    if (pointwise.dim() != 4 || pointwise.size(1) != in || pointwise.size(2) != 1 || pointwise.size(3) != 1)
      throw std::invalid_argument("relu_conv_norm: pointwise has shape " + shape_of(pointwise) + "; needed is [channels, c, 1, 1]");
    out = pointwise.size(0);
    to_h = (h + stride - 1) / stride, to_w = (w + stride - 1) / stride;
    groups = (in + kBlock - 1) / kBlock, to_groups = (out + kBlock - 1) / kBlock;
    if (n * to_h * to_w < 2 || in < 1 || out < 1)
      throw std::invalid_argument("relu_conv_norm: x has fewer than two values per channel, whose variance BatchNorm cannot take");
  }
  Index pixels() const { return h * w; }
  Index to_pixels() const { return to_h * to_w; }
  Index lanes() const { return groups * kBlock; }
  Index to_lanes() const { return to_groups * kBlock; }
  Index z() const { return n * to_pixels() * to_lanes(); }
  Index pad() const { return dilation * (k / 2); }
};

// Weights in the kernels' order: depthwise and pointwise, and for input gradients both the other way round.
template <class T>
struct Packed {
  Buffer<T> dw, pw, flipped, turned;

  Packed(const Plan& p, const T* depthwise, const T* pointwise, bool backward)
      : dw(p.lanes() * p.k * p.k, true), pw(p.lanes() * p.to_lanes(), true), flipped(backward ? p.lanes() * p.k * p.k : 0, true),
        turned(backward ? p.lanes() * p.to_lanes() : 0, true) {
    const Index kk = p.k * p.k;
    for (Index i = 0; i < p.in && depthwise; i++)
      for (Index t = 0; t < kk; t++) {
        dw.get()[dw_at(i, t, kk)] = depthwise[i * kk + t];
        if (backward) flipped.get()[dw_at(i, kk - 1 - t, kk)] = depthwise[i * kk + t];
      }
    each_pointwise(p, [&](Index o, Index i, Index at) { pw.get()[at] = pointwise[o * p.in + i]; });
    for (Index i = 0; i < p.in && backward; i++)
      for (Index o = 0; o < p.out; o++) turned.get()[(i / kBlock * p.to_lanes() + o) * kBlock + i % kBlock] = pointwise[o * p.in + i];
  }
  static Index dw_at(Index i, Index t, Index kk) { return (i / kBlock * kk + t) * kBlock + i % kBlock; }
  // f(output channel, input channel, place in pw), in the order of pw.
  template <class F>
  static void each_pointwise(const Plan& p, const F& f) {
    for (Index o = 0; o < p.out; o += kBlock)
      for (Index i = 0; i < p.in; i++)
        for (Index c = 0; c < kBlock && o + c < p.out; c++) f(o + c, i, o * p.lanes() + i * kBlock + c);
  }
};

// One thread's memory for the pixels in work: x blocked, relu(x) framed for the depthwise convolution, its output, gradients.
template <class T>
struct Scratch {
  Buffer<T> x, d, g;
  Tile<T> tile, spread;
  Scratch(const Plan& p, bool depthwise, Index span)
      : x(depthwise ? p.pixels() * p.lanes() : 0), d((depthwise ? std::max(p.pixels(), span) : span) * p.lanes()), g(span * p.to_lanes()),
        tile(p.groups, depthwise ? p.h : 0, depthwise ? p.w : 0, kFrame), spread(p.groups, depthwise ? p.h : 0, depthwise ? p.w : 0, kFrame) {}
};

// Output pixels that are worked on at once: an image's, or without a depthwise convolution so many that the rows and their
// blocked copies stay in the L1 cache.
template <class T>
Index span_of(const Plan& p, bool depthwise) {
  const Index fit = 32768 / Index((p.in + p.lanes() + p.to_lanes()) * sizeof(T)) / 8 * 8;
  return depthwise ? p.to_pixels() : std::min(p.to_pixels(), std::max<Index>(fit, 16));
}

template <class T>
std::vector<Scratch<T>> scratches(const Plan& p, const Shares& shares, bool depthwise) {
  std::vector<Scratch<T>> all;
  for (Index i = 0; i < shares.count(); i++) all.emplace_back(p, depthwise, span_of<T>(p, depthwise));
  return all;
}

// f(first, count) for all pixels of an image, `span` at once.
template <class F>
void each_span(Index pixels, Index span, const F& f) {
  for (Index at = 0; at < pixels; at += span) f(at, std::min(span, pixels - at));
}

// d = depthwise(relu(x)) of one image or relu(x) of the pixels in work, blocked.
template <class T>
void first_layers(const Plan& p, const Kernels<T>& k, const T* x, bool depthwise, const Packed<T>& packed, Index at, Index count,
                  const Scratch<T>& s) {
  if (!depthwise) return k.pass.block(x + at * p.in, p.in, p.in, true, s.d.get(), count);
  k.pass.block(x, p.in, p.in, false, s.x.get(), p.pixels());
  k.pass.fill(s.x.get(), p.pixels() * kBlock, nullptr, nullptr, true, s.tile.from(0), p.groups, p.h, p.w);
  k.stencil.depthwise(p.k, p.dilation, p.stride, false, s.tile.read(p.pad()), packed.dw.get(), dense(s.d.get(), p.to_h, p.to_w), p.groups,
                      p.to_h, p.to_w);
}

template <class T>
void run_forward(const Plan& p, const T* x, const T* depthwise, const T* pointwise, const T* weight, const T* bias, double eps, T* y, T* z,
                 T* statistics) {
  const Kernels<T> k = kernels<T>();
  const Shares shares(p.n);
  const Packed<T> packed(p, depthwise, pointwise, false);
  const Index image = p.to_pixels() * p.to_lanes(), lanes = p.to_lanes(), span = span_of<T>(p, depthwise);
  Moments<T> moments(k.pass, p.n, p.to_groups, 1);
  const std::vector<Scratch<T>> scratch = scratches<T>(p, shares, depthwise);
  shares.each([&](Index share, Index i) {
    const Scratch<T>& s = scratch[share];
    each_span(p.to_pixels(), span, [&](Index at, Index count) {
      first_layers(p, k, x + i * p.pixels() * p.in, depthwise, packed, at, count, s);
      const Map<T> to{z + i * image + at * kBlock, p.to_pixels() * kBlock, count * kBlock, kBlock};
      k.pointwise.product(s.d.get(), count * kBlock, p.groups, packed.pw.get(), to, p.to_groups, 1, count);
    });
    moments.take(0, i, z + i * image, p.to_pixels());
  });
  T *mean = statistics, *scale = statistics + lanes;
  moments.finish(0, p.to_pixels(), eps, mean, scale, statistics + 2 * lanes);
  std::vector<T> a(scale, scale + lanes), shift(lanes);
  for (Index c = 0; c < p.out; c++) {
    if (weight) a[c] *= weight[c];
    if (bias) shift[c] = bias[c];
  }
  shares.each([&](Index, Index i) {
    k.pass.norm_unblock(z + i * image, mean, a.data(), shift.data(), y + i * p.to_pixels() * p.out, p.out, p.out, p.to_pixels());
  });
}

template <class T>
struct Gradients {
  T *x, *depthwise, *pointwise, *weight, *bias;  // null where not needed
};

template <class T>
void run_backward(const Plan& p, const T* grad, const T* x, const T* depthwise, const T* pointwise, const T* weight, const T* z,
                  const T* statistics, const Gradients<T>& to) {
  const Kernels<T> k = kernels<T>();
  const Shares shares(p.n);
  const Packed<T> packed(p, depthwise, pointwise, true);
  const Index image = p.to_pixels() * p.to_lanes(), lanes = p.to_lanes(), to_row = p.to_pixels() * p.out, kk = p.k * p.k;
  const Index span = span_of<T>(p, depthwise), z_group = p.to_pixels() * kBlock;
  const T *mean = statistics, *scale = statistics + lanes;
  const std::vector<Scratch<T>> scratch = scratches<T>(p, shares, depthwise);
  const Buffer<T> sums(shares.count() * 2 * lanes, true);
  shares.each([&](Index share, Index i) {
    const Scratch<T>& s = scratch[share];
    T* to = sums.get() + share * 2 * lanes;
    each_span(p.to_pixels(), span, [&](Index at, Index count) {
      k.pass.block(grad + i * to_row + at * p.out, p.out, p.out, false, s.g.get(), count);
      const T* map = z + i * image + at * kBlock;
      k.pass.total(s.g.get(), to, p.to_groups, count);
      k.pass.dots(s.g.get(), count * kBlock, 1, &map, z_group, mean, to + lanes, p.to_groups, count);
    });
  });
  std::vector<double> sum(2 * lanes);
  for (Index share = 0; share < shares.count(); share++)
    for (Index c = 0; c < 2 * lanes; c++) sum[c] += sums.get()[share * 2 * lanes + c];
  for (Index c = 0; c < p.out; c++) {
    if (to.weight) to.weight[c] = T(sum[lanes + c] * scale[c]);
    if (to.bias) to.bias[c] = T(sum[c]);
  }
  const bool weights = to.depthwise || to.pointwise;
  if (!weights && !to.x) return;
  const auto factor = [&](Index c) { return weight && c < p.out ? double(weight[c]) : 1.0; };
  const NormInput<T> norm(lanes, factor, scale, sum.data(), sum.data() + lanes, double(p.n) * p.to_pixels());

  const Index pw_size = p.lanes() * lanes, dw_size = p.lanes() * kk;
  const Buffer<T> partial(shares.count() * (pw_size + dw_size), true);
  shares.each([&](Index share, Index i) {
    const Scratch<T>& s = scratch[share];
    const T* xi = x + i * p.pixels() * p.in;
    T *pw = partial.get() + share * (pw_size + dw_size), *dw = pw + pw_size, *g = s.g.get(), *d = s.d.get();
    each_span(p.to_pixels(), span, [&](Index at, Index count) {
      k.pass.block(grad + i * to_row + at * p.out, p.out, p.out, false, g, count);
      k.pass.norm_input(g, count * kBlock, z + i * image + at * kBlock, z_group, mean, norm.a.data(), norm.b.data(), norm.g_mean.data(), g,
                        count * kBlock, p.to_groups, count);
      first_layers(p, k, xi, depthwise, packed, at, count, s);
      if (to.pointwise) k.pointwise.weight(d, count * kBlock, p.groups, g, count * kBlock, pw, p.to_groups, count);
      if (!depthwise) {
        if (!to.x) return;
        k.pointwise.product(g, count * kBlock, p.to_groups, packed.turned.get(), dense(d, 1, count), p.groups, 1, count);
        return k.pass.unblock_positive(d, xi + at * p.in, to.x + i * p.pixels() * p.in + at * p.in, p.in, p.in, count);
      }
      Map<T> spread = s.spread.from(0);
      spread.row *= p.stride, spread.pixel *= p.stride;
      k.pointwise.product(g, z_group, p.to_groups, packed.turned.get(), spread, p.groups, p.to_h, p.to_w);
      if (to.depthwise)
        k.stencil.depthwise_weight(p.k, p.dilation, p.stride, s.tile.read(p.pad()), constant(spread), dw, p.groups, p.to_h, p.to_w);
      if (!to.x) return;
      k.stencil.depthwise(p.k, p.dilation, 1, false, s.spread.read(p.pad()), packed.flipped.get(), dense(d, p.h, p.w), p.groups, p.h, p.w);
      k.pass.unblock_positive(d, xi, to.x + i * p.pixels() * p.in, p.in, p.in, p.pixels());
    });
  });
  const auto total = [&](Index at) {
    double value = 0;
    for (Index share = 0; share < shares.count(); share++) value += partial.get()[share * (pw_size + dw_size) + at];
    return T(value);
  };
  if (to.pointwise) Packed<T>::each_pointwise(p, [&](Index o, Index i, Index at) { to.pointwise[o * p.in + i] = total(at); });
  for (Index i = 0; i < p.in && to.depthwise; i++)
    for (Index t = 0; t < kk; t++) to.depthwise[i * kk + t] = total(pw_size + Packed<T>::dw_at(i, t, kk));
}

Maybe dense_or_none(const char* name, const Maybe& tensor, const Tensor& like) {
  if (!tensor) return std::nullopt;
  if (tensor->scalar_type() != like.scalar_type()) throw std::invalid_argument(std::string("relu_conv_norm: ") + name + " and x differ in dtype");
  return torch::stable::contiguous(*tensor);
}

Maybe vector_or_none(const char* name, const Maybe& tensor, const Tensor& like, Index size) {
  if (tensor && (tensor->dim() != 1 || tensor->size(0) != size))
    throw std::invalid_argument(std::string("relu_conv_norm: ") + name + " has shape " + shape_of(*tensor) + "; needed is one value per output channel");
  return dense_or_none(name, tensor, like);
}

template <class T>
T* pointer(const Maybe& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Maybe& depthwise, const Tensor& pointwise, const Maybe& weight,
                                           const Maybe& bias, int64_t stride, int64_t dilation, double eps) {
  const Plan plan(x, depthwise, pointwise, stride, dilation);
  const Tensor from = rows(x);
  const Maybe dw = dense_or_none("depthwise", depthwise, x), pw = dense_or_none("pointwise", pointwise, x);
  const Maybe a = vector_or_none("weight", weight, x, plan.out), b = vector_or_none("bias", bias, x, plan.out);
  Tensor y = empty_map(x, plan.n, plan.out, plan.to_h, plan.to_w);
  Tensor z = torch::stable::new_empty(x, {plan.z()}), statistics = torch::stable::new_empty(x, {3, plan.to_lanes()});
  dispatch_floating("relu_conv_norm", x, [&](auto zero) {
    using T = decltype(zero);
    prefer_huge_pages(data<T>(z), plan.z() * sizeof(T));
    run_forward<T>(plan, data<T>(from), pointer<T>(dw), pointer<T>(pw), pointer<T>(a), pointer<T>(b), eps, data<T>(y), data<T>(z),
                   data<T>(statistics));
  });
  return {y, z, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Maybe& depthwise, const Tensor& pointwise,
                                                            const Maybe& weight, const Tensor& z, const Tensor& statistics, int64_t stride,
                                                            int64_t dilation, std::vector<int64_t> need) {
  const Plan plan(x, depthwise, pointwise, stride, dilation);
  if (grad.dim() != 4 || grad.size(0) != plan.n || grad.size(1) != plan.out || grad.size(2) != plan.to_h || grad.size(3) != plan.to_w ||
      z.numel() != plan.z() || statistics.numel() != 3 * plan.to_lanes() || need.size() != 5)
    throw std::invalid_argument("relu_conv_norm: grad and what forward kept do not fit x and the weights");
  for (const Tensor& t : {grad, z, statistics})
    if (t.scalar_type() != x.scalar_type()) throw std::invalid_argument("relu_conv_norm: grad and x differ in dtype");
  const Tensor from = rows(x), g = rows(grad);
  const Maybe dw = dense_or_none("depthwise", depthwise, x), pw = dense_or_none("pointwise", pointwise, x);
  const Maybe a = vector_or_none("weight", weight, x, plan.out);
  const auto vector = [&](bool needed) { return torch::stable::new_empty(x, {needed ? plan.out : 0}); };
  Tensor dx = need[0] ? empty_map(x, plan.n, plan.in, plan.h, plan.w) : torch::stable::new_empty(x, {0});
  Tensor ddw = need[1] ? torch::stable::new_empty(x, {plan.in, 1, plan.k, plan.k}) : torch::stable::new_empty(x, {0});
  Tensor dpw = need[2] ? torch::stable::new_empty(x, {plan.out, plan.in, 1, 1}) : torch::stable::new_empty(x, {0});
  Tensor da = vector(need[3]), db = vector(need[4]);
  dispatch_floating("relu_conv_norm", x, [&](auto zero) {
    using T = decltype(zero);
    const auto needed = [&](int i, const Tensor& t) { return need[i] ? data<T>(t) : nullptr; };
    run_backward<T>(plan, data<T>(g), data<T>(from), pointer<T>(dw), pointer<T>(pw), pointer<T>(a), data<T>(z), data<T>(statistics),
                    {needed(0, dx), needed(1, ddw), needed(2, dpw), needed(3, da), needed(4, db)});
  });
  return {dx, ddw, dpw, da, db};
}

}  // namespace
}  // namespace pamkd

STABLE_TORCH_LIBRARY_IMPL(pamkd, CPU, m) {
  m.impl("relu_conv_norm_forward", TORCH_BOX(&pamkd::forward));
  m.impl("relu_conv_norm_backward", TORCH_BOX(&pamkd::backward));
}
