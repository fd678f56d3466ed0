#pragma once

#include "cpu/cell_backward_edge.h"

namespace pamkd {

template <class T>
class CellBackward {
 public:
  CellBackward(const CellRun<T>& run, const T* const* inputs, const T* grad, const T* out, const T* q, const CellGradients<T>& to)
      : run_(run), plan_(run.plan), spec_(run.spec), inputs_(inputs), grad_(grad), out_(out), q_(q), to_(to),
        pixels_(plan_.node_pixels()), image_(pixels_ * plan_.lanes), bypass_(spec_.channels - plan_.c), width_(spec_.nodes * spec_.channels) {
    Index halves = 0, taps = 0, convs = 0;
    for (const EdgePlan& edge : plan_.edges) {
      Index halves_here = 0, taps_here = 0;
      for (const Conv& conv : edge.convs) halves_here += conv.separable, taps_here += conv.taps;
      halves = std::max(halves, halves_here), taps = std::max(taps, taps_here), convs = std::max(convs, Index(edge.convs.size()));
    }
    dq_ = Buffer<T>(halves * plan_.map()), z_ = Buffer<T>(convs * plan_.map()), d_ = Buffer<T>(taps * plan_.map());
    for (Index i = 0; i < spec_.nodes; i++) {
      mixture_.emplace_back(plan_.map());
      rest_.emplace_back(plan_.n * pixels_ * bypass_);
    }
    x_ = Buffer<T>(plan_.n * plan_.h * plan_.w * plan_.lanes);
    dx_ = Buffer<T>(x_.size()), pools_ = Buffer<T>(2 * plan_.map());
  }

  void operator()() {
    for (Index state = plan_.states() - 1; state >= 0; state--) visit(state);
  }

 private:
  // Gradient of a state complete: of its mixture channels (blocked) and of its bypassing channels (rows).
  void visit(Index state) {
    const bool input = state < spec_.inputs;
    if (input && !to_.inputs[state] && !to_.weights && !to_.mix) return;
    const Index h = plan_.state_h(state), w = plan_.state_w(state), size = h * w * plan_.lanes, channels = spec_.channels;
    const bool wanted = !input || to_.inputs[state];
    Buffer<T> g, rest(plan_.n * h * w * bypass_, true);
    // A node's own gradient becomes the buffer that all its uses add to; without partial channels it is used as it is.
    if (!input && spec_.partial == 1)
      g = std::move(mixture_[state - spec_.inputs]);
    else
      g = Buffer<T>(plan_.n * size);
    const T* rows = input ? inputs_[state] : out_ + (state - spec_.inputs) * channels;
    const Index stride = input ? channels : width_;
    run_.shares.each([&](Index, Index i) {
      T* to = g.get() + i * size;
      if (input) {
        std::memset(to, 0, size * sizeof(T));
      } else {
        const T* from = grad_ + i * pixels_ * width_ + (state - spec_.inputs) * channels;
        run_.k.pass.block(from, width_, plan_.c, false, to, pixels_);
        for (Index p = 0; p < pixels_ && bypass_; p++)
          std::memcpy(rest.get() + (i * pixels_ + p) * bypass_, from + p * width_ + plan_.c, bypass_ * sizeof(T));
      }
      run_.k.pass.block(rows + i * h * w * stride, stride, plan_.c, false, x_.get() + i * size, h * w);
    });
    if (state + 1 < plan_.states()) leave(state, g.get(), rest.get(), wanted);
    if (!wanted) return;
    if (input) {
      T* to = to_.inputs[state];
      run_.shares.each([&](Index, Index i) {
        run_.k.pass.unblock(g.get() + i * size, to + i * h * w * channels, channels, plan_.c, h * w);
        for (Index p = i * h * w; p < (i + 1) * h * w && bypass_; p++)
          std::memcpy(to + p * channels + plan_.c, rest.get() + p * bypass_, bypass_ * sizeof(T));
      });
      return;
    }
    const Index node = state - spec_.inputs;
    if (spec_.partial == 1) {
      mixture_[node] = std::move(g);
      return;
    }
    run_.shares.each([&](Index, Index i) {
      const auto of = [&](Index p, Index c) {
        return c < plan_.c ? g.get()[i * size + (c / kBlock * pixels_ + p) * kBlock + c % kBlock]
                           : rest.get()[(i * pixels_ + p) * bypass_ + c - plan_.c];
      };
      T* mixed = mixture_[node].get() + i * image_;
      std::memset(mixed, 0, image_ * sizeof(T));
      for (Index p = 0; p < pixels_; p++)
        for (Index o = 0; o < channels; o++) {
          const Index at = run_.place(o);
          if (run_.mixes(o))
            mixed[(at / kBlock * pixels_ + p) * kBlock + at % kBlock] = of(p, o);
          else
            rest_[node].get()[(i * pixels_ + p) * bypass_ + at] = of(p, o);
        }
    });
  }

  // All edges that leave the state: g and rest receive their gradients.
  void leave(Index state, T* g, T* rest, bool wanted) {
    const Index h = plan_.state_h(state), w = plan_.state_w(state), lanes = plan_.lanes;
    const Index step = spec_.reduction && state < spec_.inputs ? 2 : 1;
    const int used = run_.pools(state, to_.mix != nullptr);
    T* const pooled[2] = {used & 1 ? pools_.get() : nullptr, used & 2 ? pools_.get() + plan_.map() : nullptr};
    if (used) run_.run_pools(state, pooled, x_.get(), step);
    Leaving<T> leaving{x_.get(), h, w, step, wanted, {pooled[0], pooled[1]}, {Sums(2 * lanes), Sums(2 * lanes)}, run_.scratch(h, w), {}, {},
                       dx_.get(), dq_.get(), z_.get(), d_.get()};
    for (Index i = 0; i < run_.shares.count(); i++) {
      leaving.outer.emplace_back(plan_.groups, h, w, kFrame);
      leaving.inner.emplace_back(plan_.groups, plan_.node_h, plan_.node_w, 2);
    }
    for (Index e = 0; e < Index(spec_.edges.size()); e++) {
      if (spec_.edges[e].source != state) continue;
      if (bypass_) bypass(e, rest, wanted);
      EdgeBackward<T>(run_, e, mixture_[spec_.edges[e].node].get(), q_, to_, leaving)();
    }
    if (wanted) without_weights(state, leaving, g);
  }

  // g += the gradients that come through pools, skip connections and the rectified state.
  void without_weights(Index state, const Leaving<T>& leaving, T* g) {
    const Index h = leaving.h, w = leaving.w, size = h * w * plan_.lanes, lanes = plan_.lanes;
    // The gradient that reaches an operation is the same sum over edges of weight * gradient for all that follows.
    struct Uses {
      std::vector<Index> edges;
      std::vector<const T*> maps;
      std::vector<T> weights, means;
    };
    Uses pools[2], skips;
    std::vector<std::pair<Index, Index>> dropped;  // edges and columns of skip connections with dropout
    for (Index e = 0; e < Index(spec_.edges.size()); e++) {
      const Edge& edge = spec_.edges[e];
      for (size_t o = 0; edge.source == state && o < edge.candidates.size(); o++) {
        const Op op = edge.candidates[o].op;
        const bool pool = op == Op::max_pool || op == Op::avg_pool;
        if (!run_.active(e, o) || !(pool || (op == Op::skip && edge.stride == 1))) continue;
        if (run_.draws.drops(e, o)) {
          dropped.emplace_back(e, o);
          continue;
        }
        Uses& uses = pool ? pools[op == Op::avg_pool] : skips;
        uses.edges.push_back(e);
        uses.maps.push_back(mixture_[edge.node].get());
        uses.weights.insert(uses.weights.end(), lanes, run_.weight(e, o));
        uses.means.resize(uses.means.size() + lanes);
      }
    }
    const auto mix = [&](const Uses& uses, Index i, T* to, bool add) {
      std::vector<const T*> maps(uses.maps);
      for (const T*& map : maps) map += i * image_;
      std::vector<T> masked(run_.draws.masked() ? uses.weights : std::vector<T>());
      for (size_t at = 0; at < masked.size(); at++) masked[at] *= run_.draws.mask(uses.edges[at / lanes], i);
      run_.k.pass.mix(to, add, int(maps.size()), maps.data(), (run_.draws.masked() ? masked : uses.weights).data(), uses.means.data(), plan_.groups,
                      pixels_);
    };
    std::vector<NormInput<T>> norms;
    for (int pool = 0; pool < 2 && spec_.pool_norm; pool++) {
      const T* deviation = run_.pool_deviation(state, pool);
      const Sums& sums = leaving.pool_sums[pool];
      norms.emplace_back(lanes, [](Index) { return 1.0; }, deviation, sums.data(), sums.data() + lanes, double(plan_.n) * pixels_);
    }
    const Buffer<T> scale = run_.pool_scale(h, w, leaving.step);
    std::vector<Tile<T>> low, gradient;
    std::vector<Buffer<T>> pool_grad;
    for (Index i = 0; i < run_.shares.count(); i++) {
      low.emplace_back(plan_.groups, h, w, 1, -std::numeric_limits<T>::infinity());
      gradient.emplace_back(plan_.groups, h, w, 1);
      pool_grad.emplace_back(image_);
    }
    run_.shares.each([&](Index share, Index i) {
      const Tile<T>& to = gradient[share];
      T *dp = pool_grad[share].get(), *to_g = g + i * size;
      const T* x = x_.get() + i * size;
      const bool pooled = !pools[0].maps.empty() || !pools[1].maps.empty();
      if (pooled) std::memset(to.memory.get(), 0, to.memory.size() * sizeof(T));
      for (int pool = 0; pool < 2; pool++) {
        if (pools[pool].maps.empty()) continue;
        mix(pools[pool], i, dp, false);
        const T* map = leaving.pooled[pool] + i * image_;
        if (spec_.pool_norm)
          run_.k.pass.norm_input(dp, pixels_ * kBlock, map, pixels_ * kBlock, run_.pool_mean(state, pool), norms[pool].a.data(),
                                 norms[pool].b.data(), norms[pool].g_mean.data(), dp, pixels_ * kBlock, plan_.groups, pixels_);
        const Map<const T> dp_map = constant(dense(dp, plan_.node_h, plan_.node_w));
        if (pool) {
          run_.k.stencil.avg_pool_input(leaving.step, scale.get(), dp_map, to.from(1), plan_.groups, plan_.node_h, plan_.node_w);
        } else {
          run_.k.pass.fill(x, h * w * kBlock, nullptr, nullptr, false, low[share].from(0), plan_.groups, h, w);
          run_.k.stencil.max_pool_input(leaving.step, low[share].read(1), map, dp_map, to.from(1), plan_.groups, plan_.node_h, plan_.node_w);
        }
      }
      if (pooled) run_.k.pass.add_inside(to.read(0), to_g, plan_.groups, h, w);
      if (!skips.maps.empty()) mix(skips, i, to_g, true);
      for (const auto& [e, o] : dropped)
        run_.draws.mix(e, o, i, run_.draws.mask(e, i) * run_.weight(e, o), mixture_[spec_.edges[e].node].get() + i * image_, to_g);
      if (leaving.through) run_.k.pass.relu_input(dx_.get() + i * size, x, to_g, plan_.groups, h * w);
    });
  }

  // What bypasses the operations of an edge: the gradient of its weight, and where `wanted` that of the source's channels.
  void bypass(Index e, T* rest, bool wanted) {
    const Edge& edge = spec_.edges[e];
    const bool input = edge.source < spec_.inputs;
    const Index h = plan_.state_h(edge.source), w = plan_.state_w(edge.source), stride = input ? spec_.channels : width_;
    const T* rows = (input ? inputs_[edge.source] : out_ + (edge.source - spec_.inputs) * spec_.channels) + plan_.c;
    Sums sums(run_.shares.count());
    run_.shares.each([&](Index share, Index i) {
      const T *from = rest_[edge.node].get() + i * pixels_ * bypass_, *x = rows + i * h * w * stride;
      T* to = rest + i * h * w * bypass_;
      const T mask = run_.draws.mask(e, i), weight = mask * run_.bypass_weight(e);
      double sum = 0;
      for (Index y = 0; y < plan_.node_h; y++)
        for (Index v = 0; v < plan_.node_w; v++, from += bypass_)
          for (Index c = 0; c < bypass_; c++) {
            Index best = edge.stride * (y * w + v);
            if (edge.stride == 2)
              for (Index at : {best + 1, best + w, best + w + 1})
                if (x[at * stride + c] > x[best * stride + c]) best = at;
            sum += double(from[c]) * x[best * stride + c];
            if (wanted) to[best * bypass_ + c] += weight * from[c];
          }
      sums[share] += mask * sum;
    });
    if (to_.mix)
      for (double sum : sums) to_.mix[e * spec_.columns + spec_.columns - 1] += T(sum);
  }

  const CellRun<T>& run_;
  const CellPlan& plan_;
  const CellSpec& spec_;
  const T* const* inputs_;
  const T *grad_, *out_, *q_;
  const CellGradients<T> to_;
  const Index pixels_, image_, bypass_, width_;
  std::vector<Buffer<T>> mixture_, rest_;  // gradients of every node, before its channels are shuffled
  Buffer<T> x_, dx_, dq_, pools_, z_, d_;
};

}  // namespace pamkd
