// The candidates of one edge backward: gradients of its mixture and its weights, and of the rectified state that it leaves.
#pragma once

#include "cpu/cell_gradients.h"

namespace pamkd {

template <class T>
class EdgeBackward {
 public:
  // g: blocked gradient of the edge's node. q: first halves of the cell.
  EdgeBackward(const CellRun<T>& run, Index e, const T* g, const T* q, const CellGradients<T>& to, Leaving<T>& state)
      : run_(run), plan_(run.plan), k_(run.k), e_(e), edge_(run.spec.edges[e]), edge_plan_(plan_.edges[e]), g_(g), to_(to), state_(state),
        packed_(plan_.pack(edge_plan_, run.weights, true)), pixels_(plan_.node_pixels()), image_(pixels_ * plan_.lanes) {
    Index halves = 0, taps = 0;
    for (const Conv& conv : edge_plan_.convs) {
      if (run.active(e, conv.column)) {
        Work work{&conv, nullptr, nullptr, state.z + Index(works_.size()) * plan_.map(), state.d + taps * plan_.map()};
        if (conv.separable) work.q = q + conv.q * plan_.map(), work.dq = state.dq + halves++ * plan_.map();
        works_.push_back(work);
        taps += conv.taps;
      } else if (to.mix) {
        idle_.push_back({&conv, nullptr, nullptr});
      }
    }
  }

  void operator()() {
    if (!sum()) return;
    if (works_.empty() || (!state_.wanted && !to_.weights)) return;
    partial_ = Buffer<T>(to_.weights ? run_.shares.count() * edge_plan_.packed : 0, true);
    const Sums halves = outputs();
    first_halves(halves);
    if (to_.weights)
      for (const Work& work : works_)
        plan_.each_weight(*work.conv, [&](Index at, Index flat, Index) {
          double total = 0;
          for (Index share = 0; share < run_.shares.count(); share++) total += partial_.get()[share * edge_plan_.packed + at];
          to_.weights[flat] = T(total);
        });
    state_.through |= state_.wanted;
  }

 private:
  struct Work {
    const Conv* conv;
    const T* q;
    T *dq, *z, *d;  // gradient of q; of the batch, block of rows after block: output, and depthwise output or gathered taps
  };

  Sums over_shares(const Buffer<T>& memory, Index size) const {
    Sums sums(size);
    for (Index share = 0; share < run_.shares.count(); share++)
      for (Index c = 0; c < size; c++) sums[c] += memory.get()[share * size + c];
    return sums;
  }
  template <class Is>
  bool any(const Is& is) const {
    return std::any_of(works_.begin(), works_.end(), [&](const Work& work) { return is(*work.conv); });
  }
  const T* statistic(const Conv& conv, int part) const { return run_.statistic(e_, conv.column, part); }
  Index place(Rows rows) const { return rows.begin * plan_.node_w * kBlock; }  // in a block of a node's map
  Index rows_size(Rows rows) const { return rows.count() * plan_.node_w * kBlock; }
  // The gradient that reaches the edge in image i.
  const T* gradient(Index share, Index i) const {
    const T* g = g_ + i * image_;
    if (!run_.draws.masked()) return g;
    T* masked = state_.scratch[share].g.get();
    const std::vector<T> mask(plan_.lanes, run_.draws.mask(e_, i)), zero(plan_.lanes);
    k_.pass.mix(masked, false, 1, &g, mask.data(), zero.data(), plan_.groups, pixels_);
    return masked;
  }
  const T* state_of(Index i) const { return state_.x + i * state_.h * state_.w * plan_.lanes; }

  // Sums over the batch of g, and of g * (map - mean) for every candidate's map; mixture gradients from them.
  bool sum() {
    const Index lanes = plan_.lanes;
    struct Term {
      Index column;
      const T *map, *mean, *scale;  // scale is null where no BatchNorm follows, map of works and of what is drawn
    };
    std::vector<Term> terms;
    for (const Work& work : works_) terms.push_back({work.conv->column, nullptr, statistic(*work.conv, 2), statistic(*work.conv, 3)});
    std::vector<Buffer<T>> memory;  // of idle candidates, whose weight is 0: only their mixture gradient is wanted
    for (Job<T>& job : idle_) {
      if (job.conv->separable) job.q = memory.emplace_back(plan_.map()).get();
      job.z = memory.emplace_back(plan_.map()).get();
      terms.push_back({job.conv->column, job.z, statistic(*job.conv, 2), statistic(*job.conv, 3)});
    }
    run_.run(e_, idle_, packed_.get(), state_.x, state_.scratch);
    for (size_t o = 0; o < edge_.candidates.size(); o++) {
      const Op op = edge_.candidates[o].op;
      if (!to_.mix && !run_.active(e_, o)) continue;
      if (op == Op::max_pool || op == Op::avg_pool) {
        const int pool = op == Op::avg_pool;
        terms.push_back({Index(o), state_.pooled[pool], run_.pool_mean(edge_.source, pool), run_.pool_deviation(edge_.source, pool)});
      } else if (op == Op::skip && edge_.stride == 1 && to_.mix && !run_.draws.drops(e_, o)) {
        terms.push_back({Index(o), state_.x, nullptr, nullptr});
      }
    }
    const Index works = Index(works_.size()), stored = Index(terms.size());
    for (size_t o = 0; o < edge_.candidates.size(); o++)
      if (to_.mix && run_.draws.draws(e_, o)) terms.push_back({Index(o), nullptr, nullptr, run_.draws.drops(e_, o) ? run_.draws.kept() : nullptr});
    if (terms.empty()) return false;
    std::vector<T> means;
    for (const Term& term : terms)
      for (Index c = 0; c < lanes; c++) means.push_back(term.mean ? term.mean[c] : T(0));

    const Index size = (1 + Index(terms.size())) * lanes;
    const Buffer<T> memory_of_sums(run_.shares.count() * size, true);
    run_.shares.each([&](Index share, Index i) {
      const T* g = gradient(share, i);
      T* to = memory_of_sums.get() + share * size;
      const Scratch<T>& s = state_.scratch[share];
      each_work(share, i, true, [&](size_t j, Rows rows) {
        const Conv& conv = *works_[j].conv;
        T *d = works_[j].d + chunk(i, rows) * conv.taps, *z = works_[j].z + chunk(i, rows);
        run_.depthwise(conv, conv.separable, packed_.get(), conv.separable ? s.inner : s.tile, conv.separable ? 1 : state_.step, rows, d);
        run_.product(conv, conv.separable, packed_.get(), d, dense(z, rows.count(), plan_.node_w), rows.count());
        const T* map = z;
        k_.pass.dots(g + place(rows), pixels_ * kBlock, 1, &map, rows_size(rows), means.data() + j * lanes, to + (1 + j) * lanes, plan_.groups,
                     rows.count() * plan_.node_w);
      });
      k_.pass.total(g, to, plan_.groups, pixels_);
      std::vector<const T*> maps;
      for (const Term& term : terms)
        if (term.map) maps.push_back(term.map + i * image_);
      k_.pass.dots(g, pixels_ * kBlock, int(maps.size()), maps.data(), pixels_ * kBlock, means.data() + works * lanes, to + (1 + works) * lanes,
                   plan_.groups, pixels_);
      for (size_t t = stored; t < terms.size(); t++) run_.draws.dot(e_, terms[t].column, i, g, state_of(i), to + (1 + t) * lanes);
    });
    sums_ = over_shares(memory_of_sums, size);
    for (size_t t = 0; t < terms.size(); t++) {
      const double* dot = sums_.data() + (1 + t) * lanes;
      const Op op = edge_.candidates[terms[t].column].op;
      double total = 0;
      for (Index c = 0; c < lanes; c++) total += terms[t].scale ? dot[c] * terms[t].scale[c] : dot[c];
      if (to_.mix) to_.mix[e_ * run_.spec.columns + terms[t].column] = T(total);
      if (run_.spec.pool_norm && (op == Op::max_pool || op == Op::avg_pool)) {
        Sums& pool = state_.pool_sums[op == Op::avg_pool];
        const double weight = run_.weight(e_, terms[t].column);
        for (Index c = 0; c < lanes; c++) pool[c] += weight * sums_[c], pool[lanes + c] += weight * dot[c];
      }
    }
    return true;
  }

  // The rows' place in a map of the batch that holds block of rows after block.
  Index chunk(Index i, Rows rows) const { return i * image_ + rows.begin * plan_.node_w * plan_.lanes; }

  // use(j, rows) for all rows of every work, one after the other, in one image, with the tile that its half of the convolution
  // reads filled for these rows, where it is asked for.
  template <class Use>
  void each_work(Index share, Index i, bool tiles, const Use& use) const {
    const Scratch<T>& s = state_.scratch[share];
    bool filled = !tiles;  // the state's tile
    for (size_t j = 0; j < works_.size(); j++) {
      const Conv& conv = *works_[j].conv;
      const Index step = conv.separable ? 1 : state_.step, h = conv.separable ? plan_.node_h : state_.h;
      const auto fill = [&](Rows rows) {
        if (conv.separable && tiles) run_.fill_inner(s.inner, e_, conv, works_[j].q + i * image_, rows);
        if (!conv.separable && !filled) run_.fill_tile(s.tile, state_of(i), rows);
      };
      run_.by_rows(step, run_.reach(conv), h, fill, [&](Rows rows) { use(j, rows); });
      filled |= !conv.separable;
    }
  }

  // From the gradient dz of some rows of a product to that of its depthwise convolution, framed in `tile`, and to the
  // convolution's weights dw, where they are wanted; ready(rows) for the rows of its input whose gradient no later rows of dz change.
  template <class Ready>
  void through(const Conv& conv, int half, Index step, const T* dz, Rows rows, const Tile<T>& x, const Tile<T>& tile, T* dw, Index& done,
               const Ready& ready) const {
    Map<T> to = tile.from(0);
    to.row *= step, to.pixel *= step;
    to = below(to, rows.begin);
    const Index count = rows.count(), w = plan_.node_w, pad = run_.reach(conv);
    k_.pointwise.product(dz, rows_size(rows), plan_.groups, packed_.get() + conv.turned[half], to, plan_.groups, count, w);
    if (dw)
      k_.stencil.depthwise_weight(conv.k, conv.dilation, step, below(x.read(pad), rows.begin * step), constant(to), dw + conv.dw[half],
                                  plan_.groups, count, w);
    const Rows complete{done, rows.end == plan_.node_h ? tile.h : std::max(done, rows.end * step - pad)};
    if (complete.count() > 0) ready(complete);
    done = complete.end;
  }

  // dx (+)= the gradient that `outer` holds of the depthwise convolution that reads the state.
  void input_rows(const Conv& conv, const Tile<T>& outer, T* dx, bool add, Rows rows) const {
    k_.stencil.depthwise(conv.k, conv.dilation, 1, add, below(outer.read(run_.reach(conv)), rows.begin), packed_.get() + conv.flipped[0],
                         below(dense(dx, state_.h, state_.w), rows.begin), plan_.groups, rows.count(), state_.w);
  }

  // Gathered taps: the product's input gradient, added to dx where its samples came from.
  void scatter(const Conv& conv, const T* dz, Rows rows, T* d, T* dx) const {
    const Index size = rows_size(rows);
    k_.pointwise.product(dz, size, plan_.groups, packed_.get() + conv.turned[0], dense(d, rows.count(), plan_.node_w), plan_.groups * conv.taps,
                         rows.count(), plan_.node_w);
    for (Index t = 0; t < conv.taps; t++)
      for (Index b = 0; b < plan_.groups; b++)
        for (Index y = rows.begin; y < rows.end; y++)
          for (Index v = 0; v < plan_.node_w; v++, d += kBlock) {
            const Index row = y * state_.step + run_.tap_y(conv, t), column = v * state_.step + run_.tap_x(conv, t);
            if (row < 0 || row >= state_.h || column < 0 || column >= state_.w) continue;
            T* to = dx + (b * state_.h * state_.w + row * state_.w + column) * kBlock;
            for (Index c = 0; c < kBlock; c++) to[c] += d[c];
          }
  }

  // From the outputs' BatchNorm to the state, or to the first halves' outputs; returns what the BatchNorm of the latter needs.
  Sums outputs() {
    const Index lanes = plan_.lanes, size = Index(works_.size()) * 2 * lanes, state_size = state_.h * state_.w * lanes;
    std::vector<NormInput<T>> norms;
    for (size_t j = 0; j < works_.size(); j++)
      norms.emplace_back(lanes, [&](Index) { return double(run_.weight(e_, works_[j].conv->column)); }, statistic(*works_[j].conv, 3), sums_.data(),
                         sums_.data() + (1 + j) * lanes, double(plan_.n) * pixels_);
    const Buffer<T> half_sums(run_.shares.count() * size, true);
    run_.shares.each([&](Index share, Index i) {
      const Scratch<T>& s = state_.scratch[share];
      const T* g = gradient(share, i);
      T *dx = state_.dx + i * state_size, *dw = to_.weights ? partial_.get() + share * edge_plan_.packed : nullptr;
      bool begun = state_.through;
      if (state_.wanted && !begun && any([](const Conv& conv) { return conv.gathered; })) {
        std::memset(dx, 0, state_size * sizeof(T));
        begun = true;
      }
      Index done = 0;
      each_work(share, i, dw, [&](size_t j, Rows rows) {
        const Conv& conv = *works_[j].conv;
        T *d = s.d.get(), *dz = works_[j].z + chunk(i, rows);
        const Index count = rows.count() * plan_.node_w, row_size = rows_size(rows);
        k_.pass.norm_input(g + place(rows), pixels_ * kBlock, dz, row_size, statistic(conv, 2), norms[j].a.data(), norms[j].b.data(),
                           norms[j].g_mean.data(), dz, row_size, plan_.groups, count);
        if (dw)
          k_.pointwise.weight(works_[j].d + chunk(i, rows) * conv.taps, row_size, plan_.groups * conv.taps, dz, row_size,
                              dw + conv.pw[conv.separable], plan_.groups, count);
        if (conv.gathered) {
          if (state_.wanted) scatter(conv, dz, rows, d, dx);
        } else if (!conv.separable) {
          through(conv, 0, state_.step, dz, rows, s.tile, state_.outer[share], dw, done, [&](Rows complete) {
            if (state_.wanted) input_rows(conv, state_.outer[share], dx, begun, complete);
          });
        } else {
          const Tile<T>& inner = state_.inner[share];
          through(conv, 1, 1, dz, rows, s.inner, inner, dw, done, [&](Rows complete) {
            const Index size_of = rows_size(complete), at = i * image_ + place(complete);
            k_.stencil.depthwise(conv.k, 1, 1, false, below(inner.read(run_.reach(conv)), complete.begin), packed_.get() + conv.flipped[1],
                                 dense(d, complete.count(), plan_.node_w), plan_.groups, complete.count(), plan_.node_w);
            k_.pass.relu_norm_input(d, size_of, works_[j].q + at, pixels_ * kBlock, statistic(conv, 0), works_[j].dq + at, pixels_ * kBlock,
                                    half_sums.get() + share * size + j * 2 * lanes, plan_.groups, complete.count() * plan_.node_w);
          });
        }
        if (rows.end == plan_.node_h) done = 0, begun |= !conv.separable;
      });
    });
    state_.through |= state_.wanted && any([](const Conv& conv) { return !conv.separable; });
    return over_shares(half_sums, size);
  }

  // From the BatchNorm of the first halves to the state.
  void first_halves(const Sums& sums) {
    const Index lanes = plan_.lanes, state_size = state_.h * state_.w * lanes;
    if (!any([](const Conv& conv) { return conv.separable; })) return;
    std::vector<NormInput<T>> norms;
    for (size_t j = 0; j < works_.size(); j++)
      norms.emplace_back(lanes, [](Index) { return 1.0; }, statistic(*works_[j].conv, 1), sums.data() + j * 2 * lanes, sums.data() + (j * 2 + 1) * lanes,
                         double(plan_.n) * pixels_);
    run_.shares.each([&](Index share, Index i) {
      const Scratch<T>& s = state_.scratch[share];
      T *dx = state_.dx + i * state_size, *dw = to_.weights ? partial_.get() + share * edge_plan_.packed : nullptr;
      bool filled = !dw, add = state_.through;
      for (size_t j = 0; j < works_.size(); j++) {
        const Conv& conv = *works_[j].conv;
        if (!conv.separable) continue;
        Index done = 0;
        run_.by_rows(
            state_.step, run_.reach(conv), state_.h,
            [&](Rows rows) {
              if (!filled) run_.fill_tile(s.tile, state_of(i), rows);
            },
            [&](Rows rows) {
              T *d = s.d.get(), *dq = s.z.get();
              const Index at = i * image_ + place(rows), size = rows_size(rows), count = rows.count() * plan_.node_w;
              k_.pass.norm_input(works_[j].dq + at, pixels_ * kBlock, works_[j].q + at, pixels_ * kBlock, statistic(conv, 0), norms[j].a.data(),
                                 norms[j].b.data(), norms[j].g_mean.data(), dq, size, plan_.groups, count);
              if (dw) {
                run_.depthwise(conv, 0, packed_.get(), s.tile, state_.step, rows, d);
                k_.pointwise.weight(d, size, plan_.groups, dq, size, dw + conv.pw[0], plan_.groups, count);
              }
              through(conv, 0, state_.step, dq, rows, s.tile, state_.outer[share], dw, done, [&](Rows complete) {
                if (state_.wanted) input_rows(conv, state_.outer[share], dx, add, complete);
              });
            });
        filled = add = true;
      }
    });
  }

  const CellRun<T>& run_;
  const CellPlan& plan_;
  const Kernels<T>& k_;
  const Index e_;
  const Edge& edge_;
  const EdgePlan& edge_plan_;
  const T* g_;
  const CellGradients<T>& to_;
  Leaving<T>& state_;
  const Buffer<T> packed_;
  const Index pixels_, image_;
  std::vector<Work> works_;
  std::vector<Job<T>> idle_;
  Sums sums_;  // of g, then of every term's products
  Buffer<T> partial_;  // weight gradients by share
};

}  // namespace pamkd
