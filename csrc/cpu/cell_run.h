// The steps of a mixed cell that forward and backward share.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/cell_draws.h"
#include "cpu/norm.h"

namespace pamkd {

constexpr double kEpsilon = 1e-5;  // of every BatchNorm in a search cell
constexpr Index kRowBytes = 32768;  // of the L1 cache, for the rows in work

// One candidate in work: its maps over the whole batch.
template <class T>
struct Job {
  const Conv* conv;
  T* q = nullptr;  // first half's output, separable convolutions only
  T* z;
};

template <class T>
struct Scratch {
  Tile<T> tile, inner;  // rectified state, rectified and normalised first half
  Buffer<T> d, z;       // rows in work: outputs of a depthwise convolution or gathered taps, and of a product
  Buffer<T> g;          // drop-path: gradient of an edge in one image
};

template <class T>
class CellRun {
 public:
  const CellPlan& plan;
  const CellSpec& spec;
  const Kernels<T> k = kernels<T>();
  const Shares shares;
  const T* weights;
  const T* mix;
  T* statistics;  // [edges * columns + states][4][lanes]
  const CellDraws<T> draws;

  CellRun(const CellPlan& p, const T* weights_, const T* mix_, T* statistics_, const DrawSpec& drawn)
      : plan(p), spec(p.spec), shares(p.n), weights(weights_), mix(mix_), statistics(statistics_), draws(p, drawn) {}

  T weight(Index edge, Index column) const { return mix[edge * spec.columns + column]; }
  bool active(Index edge, Index column) const { return weight(edge, column) != 0 && spec.edges[edge].candidates[column].op != Op::none; }
  // Mean (part 0, 2) and 1 / deviation (part 1, 3): first half and output of a candidate; max and average pool of a state.
  T* statistic(Index edge, Index column, int part) const { return statistics + ((edge * spec.columns + column) * 4 + part) * plan.lanes; }
  T* pool_statistic(Index state, int part) const {
    return statistics + ((Index(spec.edges.size()) * spec.columns + state) * 4 + part) * plan.lanes;
  }

  // Rows of a node's image that are worked on at once: their samples, depthwise outputs and products stay in the L1 cache.
  Index block() const {
    const Index row = plan.node_w * plan.lanes * sizeof(T);
    return std::clamp<Index>(kRowBytes / (2 * row), 1, plan.node_h);
  }

  std::vector<Scratch<T>> scratch(Index h, Index w) const {
    Index taps = 1;
    for (const EdgePlan& edge : plan.edges)
      for (const Conv& conv : edge.convs) taps = conv.taps > taps ? conv.taps : taps;
    const Index row = plan.node_w * plan.lanes;
    std::vector<Scratch<T>> all;
    for (Index i = 0; i < shares.count(); i++)
      all.push_back({Tile<T>(plan.groups, h, w, kFrame), Tile<T>(plan.groups, plan.node_h, plan.node_w, 2),
                     Buffer<T>(row * std::max(block() * taps, block() + kFrame)), Buffer<T>(row * block()),
                     Buffer<T>(draws.masked() ? plan.node_pixels() * plan.lanes : 0)});
    return all;
  }

  // work(rows) for all blocks of rows of a node's image, each after fill(rows) has been called for all rows of the tile, of h,
  // that lie up to `reach` below its samples.
  template <class Fill, class Work>
  void by_rows(Index stride, Index reach, Index h, const Fill& fill, const Work& work) const {
    Index filled = 0;
    for (Index y = 0; y < plan.node_h; y += block()) {
      const Rows rows{y, std::min(y + block(), plan.node_h)};
      const Index needed = rows.end == plan.node_h ? h : std::min(h, (rows.end - 1) * stride + reach + 1);
      if (needed > filled) fill(Rows{filled, needed});
      filled = std::max(filled, needed);
      work(rows);
    }
  }

  void fill_tile(const Tile<T>& tile, const T* x, Rows rows) const {
    k.pass.fill(x + rows.begin * tile.w * kBlock, tile.h * tile.w * kBlock, nullptr, nullptr, true, below(tile.from(0), rows.begin),
                plan.groups, rows.count(), tile.w);
  }
  void fill_inner(const Tile<T>& tile, Index edge, const Conv& conv, const T* q, Rows rows) const {
    k.pass.fill(q + rows.begin * tile.w * kBlock, tile.h * tile.w * kBlock, statistic(edge, conv.column, 0), statistic(edge, conv.column, 1),
                true, below(tile.from(0), rows.begin), plan.groups, rows.count(), tile.w);
  }

  static Index tap_y(const Conv& conv, Index t) { return conv.op == Op::nor_3 ? t / 3 - 1 : t; }
  static Index tap_x(const Conv& conv, Index t) { return conv.op == Op::nor_3 ? t % 3 - 1 : t; }
  // How far from its sample an output reads.
  static Index reach(const Conv& conv) { return conv.gathered ? conv.taps > 1 : conv.dilation * (conv.k / 2); }

  // Some rows of d of one half of a convolution, from its tile.
  void depthwise(const Conv& conv, int half, const T* packed, const Tile<T>& tile, Index stride, Rows rows, T* d) const {
    const Index w = plan.node_w;
    if (!conv.gathered) {
      k.stencil.depthwise(conv.k, conv.dilation, stride, false, below(tile.read(reach(conv)), rows.begin * stride), packed + conv.dw[half],
                          dense(d, rows.count(), w), plan.groups, rows.count(), w);
      return;
    }
    for (Index t = 0; t < conv.taps; t++)
      for (Index g = 0; g < plan.groups; g++)
        for (Index i = rows.begin; i < rows.end; i++) {
          const Map<const T> from = tile.read(0);
          const T* row = from.data + g * from.group + (i * stride + tap_y(conv, t)) * from.row + tap_x(conv, t) * kBlock;
          for (Index j = 0; j < w; j++, d += kBlock) std::memcpy(d, row + j * stride * kBlock, kBlock * sizeof(T));
        }
  }

  // z of so many rows, whose d is dense.
  void product(const Conv& conv, int half, const T* packed, const T* d, Map<T> z, Index rows) const {
    k.pointwise.product(d, rows * plan.node_w * kBlock, plan.groups * conv.taps, packed + conv.pw[half], z, plan.groups, rows, plan.node_w);
  }

  // q and z of candidates that leave the blocked state x [n, groups, h, w, 8], and their statistics.
  void run(Index edge, const std::vector<Job<T>>& jobs, const T* packed, const T* x, const std::vector<Scratch<T>>& scratch) const {
    if (jobs.empty()) return;
    const Index stride = spec.edges[edge].stride, image = plan.node_pixels() * plan.lanes, pixels = plan.node_pixels();
    const Index from = scratch[0].tile.h * scratch[0].tile.w * plan.lanes;
    Moments<T> moments(k.pass, plan.n, plan.groups, jobs.size());
    bool second = false;
    Index far = 0;
    for (const Job<T>& job : jobs) far = std::max(far, reach(*job.conv));
    const auto rows_of = [&](T* z, Rows rows) { return below(dense(z, plan.node_h, plan.node_w), rows.begin); };
    shares.each([&](Index share, Index i) {
      const Scratch<T>& s = scratch[share];
      const auto output = [&](const Job<T>& job) { return (job.conv->separable ? job.q : job.z) + i * image; };
      by_rows(
          stride, far, s.tile.h, [&](Rows rows) { fill_tile(s.tile, x + i * from, rows); },
          [&](Rows rows) {
            for (const Job<T>& job : jobs) {
              depthwise(*job.conv, 0, packed, s.tile, stride, rows, s.d.get());
              product(*job.conv, 0, packed, s.d.get(), rows_of(output(job), rows), rows.count());
            }
          });
      for (size_t j = 0; j < jobs.size(); j++) moments.take(j, i, output(jobs[j]), pixels);
    });
    for (size_t j = 0; j < jobs.size(); j++) {
      const int part = jobs[j].conv->separable ? 0 : 2;
      moments.finish(j, pixels, kEpsilon, statistic(edge, jobs[j].conv->column, part), statistic(edge, jobs[j].conv->column, part + 1));
      second |= jobs[j].conv->separable;
    }
    if (!second) return;
    shares.each([&](Index share, Index i) {
      const Scratch<T>& s = scratch[share];
      for (size_t j = 0; j < jobs.size(); j++) {
        const Job<T>& job = jobs[j];
        if (!job.conv->separable) continue;
        by_rows(
            1, reach(*job.conv), plan.node_h, [&](Rows rows) { fill_inner(s.inner, edge, *job.conv, job.q + i * image, rows); },
            [&](Rows rows) {
              depthwise(*job.conv, 1, packed, s.inner, 1, rows, s.d.get());
              product(*job.conv, 1, packed, s.d.get(), rows_of(job.z + i * image, rows), rows.count());
            });
        moments.take(j, i, job.z + i * image, pixels);
      }
    });
    for (size_t j = 0; j < jobs.size(); j++)
      if (jobs[j].conv->separable)
        moments.finish(j, pixels, kEpsilon, statistic(edge, jobs[j].conv->column, 2), statistic(edge, jobs[j].conv->column, 3));
  }

  // Which pools any edge that leaves the state uses: bit 0 max, bit 1 average. `all`: also those of weight 0.
  int pools(Index state, bool all) const {
    int found = 0;
    for (size_t e = 0; e < spec.edges.size(); e++)
      for (size_t o = 0; spec.edges[e].source == state && o < spec.edges[e].candidates.size(); o++) {
        const Op op = spec.edges[e].candidates[o].op;
        if (all || active(e, o)) found |= op == Op::max_pool ? 1 : op == Op::avg_pool ? 2 : 0;
      }
    return found;
  }

  // 1 / samples under each window of the average pool.
  Buffer<T> pool_scale(Index h, Index w, Index stride) const {
    Buffer<T> scale(plan.node_pixels());
    const auto samples = [](Index at, Index size) { return 1 + (at > 0) + (at + 1 < size); };
    for (Index i = 0; i < plan.node_h; i++)
      for (Index j = 0; j < plan.node_w; j++)
        scale.get()[i * plan.node_w + j] = T(1) / T(samples(i * stride, h) * samples(j * stride, w));
    return scale;
  }

  // Pooled maps of state x and their statistics; maps[0] max, maps[1] average, either may be null.
  void run_pools(Index state, T* const* maps, const T* x, Index stride) const {
    const Index h = plan.state_h(state), w = plan.state_w(state), image = plan.node_pixels() * plan.lanes;
    const Buffer<T> scale = pool_scale(h, w, stride);
    std::vector<Tile<T>> low, zero;
    for (Index i = 0; i < shares.count(); i++) {
      low.emplace_back(plan.groups, h, w, 1, -std::numeric_limits<T>::infinity());
      zero.emplace_back(plan.groups, h, w, 1);
    }
    Moments<T> moments(k.pass, plan.n, plan.groups, 2);
    shares.each([&](Index share, Index i) {
      for (int pool = 0; pool < 2; pool++) {
        if (!maps[pool]) continue;
        const Tile<T>& tile = pool ? zero[share] : low[share];
        k.pass.fill(x + i * h * w * plan.lanes, h * w * kBlock, nullptr, nullptr, false, tile.from(0), plan.groups, h, w);
        const Map<T> to = dense(maps[pool] + i * image, plan.node_h, plan.node_w);
        if (pool)
          k.stencil.avg_pool(stride, tile.read(1), scale.get(), to, plan.groups, plan.node_h, plan.node_w);
        else
          k.stencil.max_pool(stride, tile.read(1), to, plan.groups, plan.node_h, plan.node_w);
        if (spec.pool_norm) moments.take(pool, i, maps[pool] + i * image, plan.node_pixels());
      }
    });
    for (int pool = 0; pool < 2 && spec.pool_norm; pool++)
      if (maps[pool]) moments.finish(pool, plan.node_pixels(), kEpsilon, pool_statistic(state, pool * 2), pool_statistic(state, pool * 2 + 1));
  }

  // Mean and 1 / deviation of a pool, null where no BatchNorm follows it.
  const T* pool_mean(Index state, int pool) const { return spec.pool_norm ? pool_statistic(state, pool * 2) : nullptr; }
  const T* pool_deviation(Index state, int pool) const { return spec.pool_norm ? pool_statistic(state, pool * 2 + 1) : nullptr; }

  // Partial channels: the mixture's last column weighs what bypasses the operations.
  T bypass_weight(Index edge) const { return weight(edge, spec.columns - 1); }

  // Partial channels: channel o of a node is channel o / k of the mixture where o % k == 0, else of the bypass.
  bool mixes(Index channel) const { return channel % spec.partial == 0; }
  Index place(Index channel) const {
    const Index g = channel % spec.partial, j = channel / spec.partial;
    return g == 0 ? j : (g - 1) * plan.c + j;
  }
};

}  // namespace pamkd
