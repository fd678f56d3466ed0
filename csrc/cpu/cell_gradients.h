// What the parts of a mixed cell's backward hand to each other.
#pragma once

#include "cpu/cell_run.h"

namespace pamkd {

using Sums = std::vector<double>;

// What backward is asked for; inputs' gradients are null where they are not.
template <class T>
struct CellGradients {
  T* inputs[2];  // rows [n, h, w, channels]
  T* weights;    // zero-filled, or null
  T* mix;        // zero-filled, or null
};

// What all edges that leave a state share.
template <class T>
struct Leaving {
  const T* x;  // the state, blocked
  Index h, w, step;
  bool wanted;          // the state's gradient
  const T* pooled[2];   // max, average; null where unused
  Sums pool_sums[2];    // over the batch, of a pool's gradient and of gradient * (pool - mean)
  std::vector<Scratch<T>> scratch;
  std::vector<Tile<T>> outer, inner;  // framed gradients of depthwise outputs; `outer` spreads them by the stride
  T* dx;                              // gradient of the rectified state
  T *dq, *z, *d;                      // room for the candidates of an edge
  bool through = false;               // dx holds something
};

}  // namespace pamkd
