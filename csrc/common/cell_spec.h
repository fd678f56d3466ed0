// The cell that pamkd/reference/cell_spec.py describes, decoded from CellSpec.encode().
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace pamkd {

enum class Op { none, max_pool, avg_pool, skip, sep_3, sep_5, dil_3, dil_5, nor_1, nor_3, noise, count };

struct Candidate {
  Op op;
  int64_t weights;  // offset of its first weight in the cell's flat slice
};

struct Edge {
  int64_t source, node, stride;
  std::vector<Candidate> candidates;
};

struct CellSpec {
  int64_t channels, inputs, nodes, partial, columns, op_channels, num_weights = 0;
  bool reduction, last, pool_norm;
  std::vector<Edge> edges;

  explicit CellSpec(const std::vector<int64_t>& code) {
    if (code.size() < 8) throw std::invalid_argument("mixed_cell: the encoded spec is shorter than its head");
    channels = code[0], reduction = code[1] != 0, inputs = code[2], nodes = code[3], partial = code[4];
    last = code[5] != 0, columns = code[6], pool_norm = code[7] != 0;
    if (channels < 1 || inputs < 1 || inputs > 2 || nodes < 1 || partial < 1 || channels % partial != 0)
      throw std::invalid_argument("mixed_cell: the head of the encoded spec describes no cell");
    op_channels = channels / partial;
    size_t at = 8;
    for (int64_t node = 0; node < nodes; node++)
      for (int64_t source = 0; source < inputs + node; source++) {
        Edge edge{source, node, reduction && source < inputs ? 2 : 1, {}};
        if (at >= code.size() || code[at] < 0 || code[at] > columns || at + code[at] >= code.size())
          throw std::invalid_argument("mixed_cell: the encoded spec ends before its last edge");
        const size_t end = at + 1 + code[at];
        for (at++; at < end; at++) {
          if (code[at] < 0 || code[at] >= int64_t(Op::count)) throw std::invalid_argument("mixed_cell: unknown operation code");
          edge.candidates.push_back({Op(code[at]), num_weights});
          num_weights += weights(Op(code[at]), edge.stride);
        }
        edges.push_back(std::move(edge));
      }
    if (at != code.size()) throw std::invalid_argument("mixed_cell: the encoded spec goes on after its last edge");
  }

  // Elements of the weights of one candidate.
  int64_t weights(Op op, int64_t stride) const {
    const int64_t c = op_channels;
    switch (op) {
      case Op::sep_3: return 2 * (c * 9 + c * c);
      case Op::sep_5: return 2 * (c * 25 + c * c);
      case Op::dil_3: return c * 9 + c * c;
      case Op::dil_5: return c * 25 + c * c;
      case Op::nor_1: return c * c;
      case Op::nor_3: return c * c * 9;
      case Op::skip: return stride == 2 ? c * c : 0;
      default: return 0;
    }
  }
};

}  // namespace pamkd
