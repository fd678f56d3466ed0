#pragma once

#include "cpu/cell_run.h"

namespace pamkd {

// What backward is asked for; inputs' gradients are null where they are not.
template <class T>
struct CellGradients {
  T* inputs[2];  // rows [n, h, w, channels]
  T* weights;    // zero-filled, or null
  T* mix;        // zero-filled, or null
};

template <class T>
class CellBackward {
 public:
  CellBackward(const CellRun<T>& run, const T* const* inputs, const T* grad, const T* out, const T* q, const CellGradients<T>& to)
      : run_(run), plan_(run.plan), spec_(run.spec), inputs_(inputs), grad_(grad), out_(out), q_(q), to_(to),
        pixels_(plan_.node_pixels()), image_(pixels_ * plan_.lanes), bypass_(spec_.channels - plan_.c), width_(spec_.nodes * spec_.channels) {
    Index most = 0, taps = 0;
    for (const EdgePlan& edge : plan_.edges) {
      Index here = 0;
      for (const Conv& conv : edge.convs) here += conv.taps;
      taps = std::max(taps, here), most = std::max(most, Index(edge.convs.size()));
    }
    z_ = Buffer<T>(most * plan_.map()), d_ = Buffer<T>(taps * plan_.map());
    for (Index i = 0; i < spec_.nodes; i++) {
      mixture_.emplace_back(plan_.map());
      rest_.emplace_back(plan_.n * pixels_ * bypass_);
    }
    x_ = Buffer<T>(plan_.n * plan_.h * plan_.w * plan_.lanes);
    dx_ = Buffer<T>(x_.size()), pools_ = Buffer<T>(4 * plan_.map());
  }

  void operator()() {
    for (Index state = plan_.states() - 1; state >= 0; state--) visit(state);
  }

 private:
  using Sums = std::vector<double>;

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
        run_.k.pass.block(from, width_, plan_.c, to, pixels_);
        for (Index p = 0; p < pixels_ && bypass_; p++)
          std::memcpy(rest.get() + (i * pixels_ + p) * bypass_, from + p * width_ + plan_.c, bypass_ * sizeof(T));
      }
      run_.k.pass.block(rows + i * h * w * stride, stride, plan_.c, x_.get() + i * size, h * w);
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
    const Index h = plan_.state_h(state), w = plan_.state_w(state), size = h * w * plan_.lanes;
    const Index step = spec_.reduction && state < spec_.inputs ? 2 : 1;
    const int used = run_.pools(state, to_.mix != nullptr);
    T* const pooled[2] = {used & 1 ? pools_.get() : nullptr, used & 2 ? pools_.get() + plan_.map() : nullptr};
    T* const pool_grad[2] = {pools_.get() + 2 * plan_.map(), pools_.get() + 3 * plan_.map()};
    bool pool_begun[2] = {false, false};
    if (used) run_.run_pools(state, pooled, x_.get(), step);
    Sums pool_sums[2] = {Sums(2 * plan_.lanes), Sums(2 * plan_.lanes)};
    const std::vector<Scratch<T>> scratch = run_.scratch(h, w);
    std::vector<Tile<T>> outer, inner;  // framed gradients of depthwise outputs; `outer` spreads them by the stride
    for (Index i = 0; i < run_.shares.count(); i++) {
      outer.emplace_back(plan_.groups, h, w, kFrame);
      inner.emplace_back(plan_.groups, plan_.node_h, plan_.node_w, 2);
    }
    bool through = false;  // dx_ holds something
    for (Index e = 0; e < Index(spec_.edges.size()); e++) {
      const Edge& edge = spec_.edges[e];
      if (edge.source != state) continue;
      const T* from = mixture_[edge.node].get();
      if (bypass_) bypass(e, rest, wanted);
      through |= convolutions(e, from, pooled, pool_sums, scratch, outer, inner, wanted, through);
      if (!wanted) continue;
      for (size_t o = 0; o < edge.candidates.size(); o++) {
        const Op op = edge.candidates[o].op;
        if (!run_.active(e, o)) continue;
        if (op == Op::max_pool || op == Op::avg_pool) {
          const int pool = op == Op::avg_pool;
          add_scaled(pool_grad[pool], pool_begun[pool], from, run_.weight(e, o));
          pool_begun[pool] = true;
        } else if (op == Op::skip && edge.stride == 1) {
          add_scaled(g, true, from, run_.weight(e, o));
        }
      }
    }
    if (!wanted) return;
    for (int pool = 0; pool < 2; pool++) {
      if (!pool_begun[pool]) continue;
      if (spec_.pool_norm) {
        const NormInput<T> norm(plan_.lanes, [](Index) { return 1.0; }, run_.pool_deviation(state, pool), pool_sums[pool].data(), pool_sums[pool].data() + plan_.lanes, double(plan_.n) * pixels_);
        run_.shares.each([&](Index, Index i) {
          T* dp = pool_grad[pool] + i * image_;
          run_.k.pass.norm_input(dp, pooled[pool] + i * image_, run_.pool_mean(state, pool), norm.a.data(), norm.b.data(), norm.g_mean.data(), dp, plan_.groups, pixels_);
        });
      }
      pool_input(pool, step, h, w, pool_grad[pool], g);
    }
    if (through)
      run_.shares.each([&](Index, Index i) {
        run_.k.pass.relu_input(dx_.get() + i * size, x_.get() + i * size, g + i * size, plan_.groups, h * w);
      });
  }

  void add_scaled(T* to, bool add, const T* from, T weight) {
    const std::vector<T> scale(plan_.lanes, weight), mean(plan_.lanes);
    run_.shares.each([&](Index, Index i) {
      const T* map = from + i * image_;
      run_.k.pass.mix(to + i * image_, add, 1, &map, scale.data(), mean.data(), plan_.groups, pixels_);
    });
  }

  // What bypasses the operations of an edge: the gradient of its weight, and where `wanted` that of the source's channels.
  void bypass(Index e, T* rest, bool wanted) {
    const Edge& edge = spec_.edges[e];
    const bool input = edge.source < spec_.inputs;
    const Index h = plan_.state_h(edge.source), w = plan_.state_w(edge.source), stride = input ? spec_.channels : width_;
    const T* rows = (input ? inputs_[edge.source] : out_ + (edge.source - spec_.inputs) * spec_.channels) + plan_.c;
    const T weight = run_.bypass_weight(e);
    Sums sums(run_.shares.count());
    run_.shares.each([&](Index share, Index i) {
      const T *from = rest_[edge.node].get() + i * pixels_ * bypass_, *x = rows + i * h * w * stride;
      T* to = rest + i * h * w * bypass_;
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
      sums[share] += sum;
    });
    if (to_.mix)
      for (double sum : sums) to_.mix[e * spec_.columns + spec_.columns - 1] += T(sum);
  }

  void pool_input(int pool, Index step, Index h, Index w, T* grad, T* g) {
    const Buffer<T> scale = run_.pool_scale(h, w, step);
    std::vector<Tile<T>> low, gradient;
    for (Index i = 0; i < run_.shares.count(); i++) {
      low.emplace_back(plan_.groups, h, w, 1, -std::numeric_limits<T>::infinity());
      gradient.emplace_back(plan_.groups, h, w, 1);
    }
    run_.shares.each([&](Index share, Index i) {
      T* dp = grad + i * image_;
      const Tile<T>& to = gradient[share];
      std::memset(to.memory.get(), 0, to.memory.size() * sizeof(T));
      const Map<T> dense_dp = dense(dp, plan_.node_h, plan_.node_w);
      const Map<const T> dp_map{dense_dp.data, dense_dp.group, dense_dp.row, dense_dp.pixel};
      if (pool) {
        run_.k.stencil.avg_pool_input(step, scale.get(), dp_map, to.from(1), plan_.groups, plan_.node_h, plan_.node_w);
      } else {
        run_.k.pass.fill(x_.get() + i * h * w * plan_.lanes, nullptr, nullptr, false, low[share].from(0), plan_.groups, h, w);
        run_.k.stencil.max_pool_input(step, low[share].read(1), dp_map, to.from(1), plan_.groups, plan_.node_h, plan_.node_w);
      }
      run_.k.pass.add_inside(to.read(0), g + i * h * w * plan_.lanes, plan_.groups, h, w);
    });
  }

  // One edge's candidates: mixture gradients, weight gradients, and dx_ (+)= gradients of the rectified state.
  // Returns whether dx_ was written.
  bool convolutions(Index e, const T* g, T* const* pooled, Sums* pool_sums, const std::vector<Scratch<T>>& scratch,
                    const std::vector<Tile<T>>& outer, const std::vector<Tile<T>>& inner, bool wanted, bool add);

  const CellRun<T>& run_;
  const CellPlan& plan_;
  const CellSpec& spec_;
  const T* const* inputs_;
  const T *grad_, *out_, *q_;
  const CellGradients<T> to_;
  const Index pixels_, image_, bypass_, width_;
  std::vector<Buffer<T>> mixture_, rest_;  // gradients of every node, before its channels are shuffled
  Buffer<T> x_, dx_, pools_, z_, d_;
};

}  // namespace pamkd

#include "cpu/cell_backward_edge.h"
