#pragma once

#include "cpu/cell_run.h"

namespace pamkd {

// inputs: rows [n, h, w, channels] of each input state. out: rows [n, node_h, node_w, nodes * channels].
// q: the first halves [separable, n, groups, node_h, node_w, 8], or null where nothing is kept for backward.
template <class T>
void cell_forward(const CellRun<T>& run, const T* const* inputs, T* out, T* q) {
  const CellPlan& plan = run.plan;
  const CellSpec& spec = run.spec;
  const Index channels = spec.channels, bypass = channels - plan.c, width = spec.nodes * channels;
  const Index pixels = plan.node_pixels(), image = pixels * plan.lanes;
  Index most = 0;
  for (const EdgePlan& edge : plan.edges) most = std::max(most, Index(edge.convs.size()));
  std::vector<Buffer<T>> nodes, rests;
  for (Index i = 0; i < spec.nodes; i++) {
    nodes.emplace_back(plan.map());
    rests.emplace_back(plan.n * pixels * bypass, true);
  }
  std::vector<bool> begun(spec.nodes);
  Buffer<T> x_memory(plan.n * plan.h * plan.w * plan.lanes), pools(2 * plan.map()), z(most * plan.map());
  Buffer<T> own_q(q ? 0 : most * plan.map());

  for (Index state = 0; state < plan.states(); state++) {
    const Index h = plan.state_h(state), w = plan.state_w(state);
    const T* rows = state < spec.inputs ? inputs[state] : out + (state - spec.inputs) * channels;
    const Index stride = state < spec.inputs ? channels : width;
    const T* x = x_memory.get();
    if (state >= spec.inputs) {
      const Index node = state - spec.inputs;
      run.shares.each([&](Index, Index i) {
        T* to = out + i * pixels * width + node * channels;
        if (spec.partial == 1) return run.k.pass.unblock(nodes[node].get() + i * image, to, width, channels, pixels);
        for (Index p = 0; p < pixels; p++)
          for (Index o = 0; o < channels; o++) {
            const Index at = run.place(o);
            to[p * width + o] = run.mixes(o) ? nodes[node].get()[i * image + (at / kBlock * pixels + p) * kBlock + at % kBlock]
                                             : rests[node].get()[(i * pixels + p) * bypass + at];
          }
      });
      if (spec.partial == 1) x = nodes[node].get();
    }
    if (state + 1 == plan.states()) break;
    if (x == x_memory.get())
      run.shares.each([&](Index, Index i) {
        run.k.pass.block(rows + i * h * w * stride, stride, plan.c, false, x_memory.get() + i * h * w * plan.lanes, h * w);
      });

    const Index step = spec.reduction && state < spec.inputs ? 2 : 1;
    const int used = run.pools(state, false);
    T* const pooled[2] = {used & 1 ? pools.get() : nullptr, used & 2 ? pools.get() + plan.map() : nullptr};
    if (used) run.run_pools(state, pooled, x, step);
    const std::vector<Scratch<T>> scratch = run.scratch(h, w);

    for (Index e = 0; e < Index(spec.edges.size()); e++) {
      const Edge& edge = spec.edges[e];
      if (edge.source != state) continue;
      std::vector<Job<T>> jobs;
      for (const Conv& conv : plan.edges[e].convs) {
        if (!run.active(e, conv.column)) continue;
        Job<T> job{&conv, nullptr, z.get() + Index(jobs.size()) * plan.map()};
        if (conv.separable) job.q = q ? q + conv.q * plan.map() : own_q.get() + Index(jobs.size()) * plan.map();
        jobs.push_back(job);
      }
      if (!jobs.empty()) run.run(e, jobs, plan.pack(plan.edges[e], run.weights, false).get(), x, scratch);

      // The mixture: sum of a * (map - mean).
      std::vector<const T*> maps;
      std::vector<T> scale, mean;
      const auto add = [&](const T* map, T weight, const T* m, const T* s) {
        maps.push_back(map);
        for (Index c = 0; c < plan.lanes; c++) scale.push_back(s ? weight * s[c] : weight), mean.push_back(m ? m[c] : T(0));
      };
      for (const Job<T>& job : jobs)
        add(job.z, run.weight(e, job.conv->column), run.statistic(e, job.conv->column, 2), run.statistic(e, job.conv->column, 3));
      for (size_t o = 0; o < edge.candidates.size(); o++) {
        const Op op = edge.candidates[o].op;
        if (!run.active(e, o)) continue;
        if (op == Op::max_pool || op == Op::avg_pool) {
          const int pool = op == Op::avg_pool;
          add(pooled[pool], run.weight(e, o), run.pool_mean(state, pool), run.pool_deviation(state, pool));
        } else if (op == Op::skip && edge.stride == 1 && !run.draws.drops(e, o)) {
          add(x, run.weight(e, o), nullptr, nullptr);
        }
      }
      const bool again = begun[edge.node];
      begun[edge.node] = true;
      run.shares.each([&](Index, Index i) {
        std::vector<const T*> at(maps);
        for (const T*& map : at) map += i * image;
        const T mask = run.draws.mask(e, i);
        std::vector<T> masked(run.draws.masked() ? scale : std::vector<T>());
        for (T& value : masked) value *= mask;
        T* node = nodes[edge.node].get() + i * image;
        run.k.pass.mix(node, again, int(at.size()), at.data(), (run.draws.masked() ? masked : scale).data(), mean.data(), plan.groups, pixels);
        for (size_t o = 0; o < edge.candidates.size(); o++)
          if (run.active(e, o) && run.draws.draws(e, o)) run.draws.mix(e, o, i, mask * run.weight(e, o), x + i * image, node);
        if (!bypass) return;
        const T weight = mask * run.bypass_weight(e);
        T* to = rests[edge.node].get() + i * pixels * bypass;
        const T* from = rows + i * h * w * stride + plan.c;
        for (Index y = 0; y < plan.node_h; y++)
          for (Index v = 0; v < plan.node_w; v++, to += bypass)
            for (Index c = 0; c < bypass; c++) {
              const T* at0 = from + (y * step * w + v * step) * stride + c;
              to[c] += weight * (step == 1 ? *at0 : std::max(std::max(at0[0], at0[stride]), std::max(at0[w * stride], at0[(w + 1) * stride])));
            }
      });
    }
  }
}

}  // namespace pamkd
