// The convolutions of one edge backward; included by cell_backward.h.
#pragma once

#include "cpu/cell_backward.h"

namespace pamkd {

template <class T>
bool CellBackward<T>::convolutions(Index e, const T* g, T* const* pooled, Sums* pool_sums, const std::vector<Scratch<T>>& scratch,
                                   const std::vector<Tile<T>>& outer, const std::vector<Tile<T>>& inner, bool wanted, bool add) {
  const Edge& edge = spec_.edges[e];
  const EdgePlan& edge_plan = plan_.edges[e];
  const Index h = plan_.state_h(edge.source), w = plan_.state_w(edge.source), size = h * w * plan_.lanes;
  const Index node_h = plan_.node_h, node_w = plan_.node_w, step = edge.stride, lanes = plan_.lanes, groups = plan_.groups;
  const Buffer<T> packed_memory = plan_.pack(edge_plan, run_.weights, true);
  const T* packed = packed_memory.get();
  const auto& k = run_.k;

  struct Work {
    const Conv* conv;
    const T* q;
    T *z, *d;
  };
  std::vector<Work> works;
  std::vector<Job<T>> idle;  // weight 0: only their mixture gradient is wanted
  Index slots = 0, d_slots = 0, idle_q = 0;
  bool any_tile = false, any_separable = false;
  for (const Conv& conv : edge_plan.convs) {
    if (run_.active(e, conv.column)) {
      works.push_back({&conv, conv.separable ? q_ + conv.q * plan_.map() : nullptr, z_.get() + slots++ * plan_.map(),
                       d_.get() + d_slots * plan_.map()});
      d_slots += conv.taps;
      any_tile |= !conv.separable, any_separable |= conv.separable;
    } else if (to_.mix) {
      idle.push_back({&conv, nullptr, z_.get() + slots++ * plan_.map()});
      idle_q += conv.separable;
    }
  }
  const Buffer<T> idle_memory(idle_q * plan_.map());
  idle_q = 0;
  for (Job<T>& job : idle)
    if (job.conv->separable) job.q = idle_memory.get() + idle_q++ * plan_.map();
  run_.run(e, idle, packed, x_.get(), scratch);

  // Sums over the batch of g and of g * (map - mean) for every candidate's map.
  struct Term {
    Index column;
    const T* scale;  // null: no BatchNorm
  };
  std::vector<Term> terms;
  std::vector<const T*> maps;
  std::vector<T> means;
  const auto term = [&](Index column, const T* map, const T* mean, const T* scale) {
    terms.push_back({column, scale});
    maps.push_back(map);
    for (Index c = 0; c < lanes; c++) means.push_back(mean ? mean[c] : T(0));
  };
  for (const Work& work : works) term(work.conv->column, work.z, run_.statistic(e, work.conv->column, 2), run_.statistic(e, work.conv->column, 3));
  for (const Job<T>& job : idle) term(job.conv->column, job.z, run_.statistic(e, job.conv->column, 2), run_.statistic(e, job.conv->column, 3));
  for (size_t o = 0; o < edge.candidates.size(); o++) {
    const Op op = edge.candidates[o].op;
    if (!to_.mix && !run_.active(e, o)) continue;
    if (op == Op::max_pool || op == Op::avg_pool) {
      const int pool = op == Op::avg_pool;
      term(o, pooled[pool], run_.pool_mean(edge.source, pool), run_.pool_deviation(edge.source, pool));
    } else if (op == Op::skip && step == 1 && to_.mix) {
      term(o, x_.get(), nullptr, nullptr);
    }
  }
  if (terms.empty()) return false;
  const Index sum_size = (1 + Index(terms.size())) * lanes;
  const Buffer<T> sum_memory(run_.shares.count() * sum_size, true);
  run_.shares.each([&](Index share, Index i) {
    const Scratch<T>& s = scratch[share];
    if (any_tile) run_.fill_tile(s.tile, x_.get() + i * size);
    for (const Work& work : works) {
      const bool second = work.conv->separable;
      T* d = work.d + i * image_ * work.conv->taps;
      if (second) run_.fill_inner(s.inner, e, *work.conv, work.q + i * image_);
      run_.depthwise(*work.conv, second, packed, second ? s.inner : s.tile, second ? 1 : step, d);
      run_.product(*work.conv, second, packed, d, work.z + i * image_);
    }
    std::vector<const T*> at(maps);
    for (const T*& map : at) map += i * image_;
    k.pass.dots(g + i * image_, int(at.size()), at.data(), means.data(), sum_memory.get() + share * sum_size, groups, pixels_);
  });
  Sums sums(sum_size);
  for (Index share = 0; share < run_.shares.count(); share++)
    for (Index c = 0; c < sum_size; c++) sums[c] += sum_memory.get()[share * sum_size + c];
  for (size_t t = 0; t < terms.size(); t++) {
    const double* dot = sums.data() + (1 + t) * lanes;
    const Op op = edge.candidates[terms[t].column].op;
    double total = 0;
    for (Index c = 0; c < lanes; c++) total += terms[t].scale ? dot[c] * terms[t].scale[c] : dot[c];
    if (to_.mix) to_.mix[e * spec_.columns + terms[t].column] = T(total);
    if (spec_.pool_norm && (op == Op::max_pool || op == Op::avg_pool)) {
      Sums& pool = pool_sums[op == Op::avg_pool];
      const double weight = run_.weight(e, terms[t].column);
      for (Index c = 0; c < lanes; c++) pool[c] += weight * sums[c], pool[lanes + c] += weight * dot[c];
    }
  }
  if (works.empty() || (!wanted && !to_.weights)) return false;

  const double count = double(plan_.n) * pixels_;
  std::vector<NormInput<T>> norms;
  for (size_t j = 0; j < works.size(); j++)
    norms.emplace_back(lanes, [&](Index) { return double(run_.weight(e, works[j].conv->column)); }, run_.statistic(e, works[j].conv->column, 3), sums.data(),
                       sums.data() + (1 + j) * lanes, count);
  const Buffer<T> partial(to_.weights ? run_.shares.count() * edge_plan.packed : 0, true);
  const Index half_size = Index(works.size()) * 2 * lanes;
  const Buffer<T> half_sums(run_.shares.count() * half_size, true);

  // The gradient of a depthwise output is spread by the stride into the outer tile; from there to weights and input.
  const auto through_depthwise = [&](const Conv& conv, const T* dz, const Tile<T>& x_tile, const Tile<T>& tile, T* dw, T* dx, bool add_dx) {
    Map<T> spread = tile.from(0);
    spread.row *= step, spread.pixel *= step;
    k.pointwise.product(dz, pixels_ * kBlock, groups, packed + conv.turned[0], spread, groups, node_h, node_w);
    const Index pad = conv.dilation * (conv.k / 2);
    if (dw)
      k.stencil.depthwise_weight(conv.k, conv.dilation, step, x_tile.read(pad), {spread.data, spread.group, spread.row, spread.pixel},
                                 dw + conv.dw[0], groups, node_h, node_w);
    if (wanted)
      k.stencil.depthwise(conv.k, conv.dilation, 1, add_dx, tile.read(pad), packed + conv.flipped[0], dense(dx, h, w), groups, h, w);
  };

  run_.shares.each([&](Index share, Index i) {
    const Scratch<T>& s = scratch[share];
    T *dz = s.d.get(), *dx = dx_.get() + i * size, *dw = to_.weights ? partial.get() + share * edge_plan.packed : nullptr;
    if (any_tile && dw) run_.fill_tile(s.tile, x_.get() + i * size);
    bool begun = add;
    for (size_t j = 0; j < works.size(); j++) {
      const Conv& conv = *works[j].conv;
      T *z = works[j].z + i * image_, *d = works[j].d + i * image_ * conv.taps;
      const int half = conv.separable;
      k.pass.norm_input(g + i * image_, z, run_.statistic(e, conv.column, 2), norms[j].a.data(), norms[j].b.data(), norms[j].g_mean.data(), dz,
                        groups, pixels_);
      if (dw) k.pointwise.weight(d, pixels_ * kBlock, groups * conv.taps, dz, pixels_ * kBlock, dw + conv.pw[half], groups, pixels_);
      if (conv.gathered) {
        if (!wanted) continue;
        if (!begun) std::memset(dx, 0, size * sizeof(T));
        begun = true;
        k.pointwise.product(dz, pixels_ * kBlock, groups, packed + conv.turned[0], dense(d, node_h, node_w), groups * conv.taps, node_h, node_w);
        for (Index t = 0; t < conv.taps; t++)
          for (Index b = 0; b < groups; b++)
            for (Index y = 0; y < node_h; y++)
              for (Index v = 0; v < node_w; v++, d += kBlock) {
                const Index row = y * step + run_.tap_y(conv, t), column = v * step + run_.tap_x(conv, t);
                if (row < 0 || row >= h || column < 0 || column >= w) continue;
                T* to = dx + (b * h * w + row * w + column) * kBlock;
                for (Index c = 0; c < kBlock; c++) to[c] += d[c];
              }
      } else if (!conv.separable) {
        through_depthwise(conv, dz, s.tile, outer[share], dw, dx, begun);
        begun |= wanted;
      } else {
        const T* q = works[j].q + i * image_;
        const Tile<T>& tile = inner[share];
        k.pointwise.product(dz, pixels_ * kBlock, groups, packed + conv.turned[1], tile.from(0), groups, node_h, node_w);
        if (dw) {
          run_.fill_inner(s.inner, e, conv, q);
          k.stencil.depthwise_weight(conv.k, 1, 1, s.inner.read(conv.k / 2), tile.read(0), dw + conv.dw[1], groups, node_h, node_w);
        }
        k.stencil.depthwise(conv.k, 1, 1, false, tile.read(conv.k / 2), packed + conv.flipped[1], dense(d, node_h, node_w), groups, node_h, node_w);
        k.pass.relu_norm_input(d, q, run_.statistic(e, conv.column, 0), z, half_sums.get() + share * half_size + j * 2 * lanes, groups, pixels_);
      }
    }
  });

  if (any_separable) {
    Sums total(half_size);
    for (Index share = 0; share < run_.shares.count(); share++)
      for (Index c = 0; c < half_size; c++) total[c] += half_sums.get()[share * half_size + c];
    std::vector<NormInput<T>> first;
    for (size_t j = 0; j < works.size(); j++)
      first.emplace_back(lanes, [](Index) { return 1.0; }, run_.statistic(e, works[j].conv->column, 1), total.data() + j * 2 * lanes, total.data() + (j * 2 + 1) * lanes, count);
    run_.shares.each([&](Index share, Index i) {
      const Scratch<T>& s = scratch[share];
      T *dx = dx_.get() + i * size, *dw = to_.weights ? partial.get() + share * edge_plan.packed : nullptr;
      if (dw) run_.fill_tile(s.tile, x_.get() + i * size);
      bool begun = add || any_tile;
      for (size_t j = 0; j < works.size(); j++) {
        const Conv& conv = *works[j].conv;
        if (!conv.separable) continue;
        T* dq = works[j].z + i * image_;
        k.pass.norm_input(dq, works[j].q + i * image_, run_.statistic(e, conv.column, 0), first[j].a.data(), first[j].b.data(),
                          first[j].g_mean.data(), dq, groups, pixels_);
        if (dw) {
          run_.depthwise(conv, 0, packed, s.tile, step, s.d.get());
          k.pointwise.weight(s.d.get(), pixels_ * kBlock, groups, dq, pixels_ * kBlock, dw + conv.pw[0], groups, pixels_);
        }
        through_depthwise(conv, dq, s.tile, outer[share], dw, dx, begun);
        begun = true;
      }
    });
  }
  if (to_.weights)
    for (const Work& work : works)
      plan_.each_weight(*work.conv, [&](Index at, Index flat, Index) {
        double total = 0;
        for (Index share = 0; share < run_.shares.count(); share++) total += partial.get()[share * edge_plan.packed + at];
        to_.weights[flat] = T(total);
      });
  return wanted;
}

}  // namespace pamkd
