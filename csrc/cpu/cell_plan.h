// What forward and backward of mixed_cell share: geometry, and candidates with packed weights.
#pragma once

#include <vector>

#include "common/cell_spec.h"
#include "cpu/memory.h"

namespace pamkd {

// A candidate with a matrix product: depthwise + pointwise once or twice, or a convolution over a few gathered taps.
struct Conv {
  Op op;
  int64_t column, weights;  // `weights`: offset in the cell's slice
  int k = 0, dilation = 1, taps = 1;
  bool separable = false, gathered = false;
  int64_t q = -1;                     // number of its first half among the cell's separable convolutions
  Index dw[2] = {}, pw[2] = {};       // offsets in the packed weights of its edge, by half
  Index flipped[2] = {}, turned[2] = {};  // for input gradients
};

struct EdgePlan {
  std::vector<Conv> convs;
  Index packed = 0;  // elements, without the flipped and turned copies
  Index all = 0;
};

struct CellPlan {
  const CellSpec& spec;
  Index n, h, w, node_h, node_w;
  Index c, groups, lanes;  // channels that the operations see, in blocks, padded
  int64_t separable = 0;
  std::vector<EdgePlan> edges;

  CellPlan(const CellSpec& s, Index n_, Index h_, Index w_)
      : spec(s), n(n_), h(h_), w(w_), node_h(s.reduction ? (h_ + 1) / 2 : h_), node_w(s.reduction ? (w_ + 1) / 2 : w_), c(s.op_channels) {
    groups = (c + kBlock - 1) / kBlock;
    lanes = groups * kBlock;
    for (const Edge& edge : spec.edges) {
      EdgePlan plan;
      for (size_t i = 0; i < edge.candidates.size(); i++) {
        const Op op = edge.candidates[i].op;
        Conv conv{op, int64_t(i), edge.candidates[i].weights};
        if (op == Op::sep_3 || op == Op::sep_5 || op == Op::dil_3 || op == Op::dil_5) {
          conv.k = op == Op::sep_3 || op == Op::dil_3 ? 3 : 5;
          conv.separable = op == Op::sep_3 || op == Op::sep_5;
          conv.dilation = conv.separable ? 1 : 2;
          if (conv.separable) conv.q = separable++;
        } else if (op == Op::nor_1 || op == Op::nor_3 || (op == Op::skip && edge.stride == 2)) {
          conv.gathered = true;
          conv.taps = op == Op::nor_3 ? 9 : op == Op::nor_1 ? 1 : 2;
        } else {
          continue;
        }
        for (int half = 0; half <= int(conv.separable); half++) {
          conv.dw[half] = plan.packed, plan.packed += lanes * conv.k * conv.k;
          conv.pw[half] = plan.packed, plan.packed += lanes * lanes * conv.taps;
        }
        plan.convs.push_back(conv);
      }
      plan.all = plan.packed;
      for (Conv& conv : plan.convs)
        for (int half = 0; half <= int(conv.separable); half++) {
          conv.flipped[half] = plan.all, plan.all += lanes * conv.k * conv.k;
          conv.turned[half] = plan.all, plan.all += lanes * lanes * conv.taps;
        }
      edges.push_back(std::move(plan));
    }
  }

  int64_t states() const { return spec.inputs + spec.nodes; }
  Index state_h(int64_t state) const { return state < spec.inputs ? h : node_h; }
  Index state_w(int64_t state) const { return state < spec.inputs ? w : node_w; }
  Index node_pixels() const { return node_h * node_w; }
  Index map() const { return n * node_pixels() * lanes; }  // elements of one node-sized map
  Index statistics() const { return (Index(spec.edges.size()) * spec.columns + states()) * 4 * lanes; }

  // Calls f(packed index, flat index, flipped or turned index) for every weight of a conv.
  template <class F>
  void each_weight(const Conv& conv, const F& f) const {
    Index flat = conv.weights;
    if (conv.gathered) {
      const Index half = c / 2;  // FactorizedReduce: the first half of the outputs reads tap 0, the others tap 1
      for (Index o = 0; o < c; o++)
        for (Index i = 0; i < c; i++)
          for (Index t = 0; t < conv.taps; t++) {
            if (conv.op == Op::skip && t != (o >= half)) continue;
            const Index in = t * lanes + i;
            f(conv.pw[0] + (o / kBlock * conv.taps * lanes + in) * kBlock + o % kBlock, flat++,
              conv.turned[0] + (in / kBlock * lanes + o) * kBlock + in % kBlock);
          }
      return;
    }
    const Index kk = conv.k * conv.k;
    for (int half = 0; half <= int(conv.separable); half++) {
      for (Index i = 0; i < c; i++)
        for (Index t = 0; t < kk; t++)
          f(conv.dw[half] + (i / kBlock * kk + t) * kBlock + i % kBlock, flat++,
            conv.flipped[half] + (i / kBlock * kk + kk - 1 - t) * kBlock + i % kBlock);
      for (Index o = 0; o < c; o++)
        for (Index i = 0; i < c; i++)
          f(conv.pw[half] + (o / kBlock * lanes + i) * kBlock + o % kBlock, flat++,
            conv.turned[half] + (i / kBlock * lanes + o) * kBlock + i % kBlock);
    }
  }

  template <class T>
  Buffer<T> pack(const EdgePlan& edge, const T* weights, bool backward) const {
    Buffer<T> packed(backward ? edge.all : edge.packed, true);
    T* to = packed.get();
    for (const Conv& conv : edge.convs)
      each_weight(conv, [&](Index at, Index flat, Index other) {
        to[at] = weights[flat];
        if (backward) to[other] = weights[flat];
      });
    return packed;
  }
};

}  // namespace pamkd
