// Maps of the convolution operations and their framed tiles, the kernels for this CPU, and the images' shares of the threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <type_traits>

#include "cpu/buffer.h"
#include "cpu/passes.h"
#include "cpu/pointwise.h"
#include "cpu/stencil.h"

namespace pamkd {

using torch::stable::Tensor;

// The dense rows [n, h, w, c] of a map [n, c, h, w].
inline Tensor rows(const Tensor& map) { return torch::stable::contiguous(map, torch::headeronly::MemoryFormat::ChannelsLast); }

// A map [n, c, h, w] of such rows.
inline Tensor empty_map(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty({n, c, h, w}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <class T>
struct Kernels {
  const StencilKernels<T>& stencil;
  const PointwiseKernels<T>& pointwise;
  const PassKernels<T>& pass;
};

template <class T>
Kernels<T> kernels() {
  if constexpr (std::is_same_v<T, float>)
    return {PAMKD_PICK(stencils_float)(), PAMKD_PICK(pointwise_float)(), PAMKD_PICK(passes_float)()};
  else
    return {PAMKD_PICK(stencils_double)(), PAMKD_PICK(pointwise_double)(), PAMKD_PICK(passes_double)()};
}

constexpr Index kFrame = 4;  // of zeros around a tile: what a dilated 5x5 convolution reads beyond the edge

// A tile of one image with a frame around it.
template <class T>
struct Tile {
  Buffer<T> memory;
  Index groups, h, w, frame;

  Tile() = default;
  Tile(Index groups_, Index h_, Index w_, Index frame_, T value = 0)
      : memory(groups_ * (h_ + 2 * frame_) * (w_ + 2 * frame_) * kBlock), groups(groups_), h(h_), w(w_), frame(frame_) {
    for (Index i = 0; i < memory.size(); i++) memory.get()[i] = value;
  }
  // The tile seen from `pad` samples up and left of its first pixel.
  Map<T> from(Index pad) const {
    const Index row = (w + 2 * frame) * kBlock;
    return {memory.get() + (frame - pad) * (row + kBlock), (h + 2 * frame) * row, row, kBlock};
  }
  Map<const T> read(Index pad) const {
    const Map<T> map = from(pad);
    return {map.data, map.group, map.row, map.pixel};
  }
};

template <class T>
Map<T> dense(T* data, Index h, Index w) {
  return {data, h * w * kBlock, w * kBlock, kBlock};
}

// A map from its row `rows` on.
template <class T>
Map<T> below(Map<T> map, Index rows) {
  map.data += rows * map.row;
  return map;
}

template <class T>
Map<const T> constant(Map<T> map) {
  return {map.data, map.group, map.row, map.pixel};
}

struct Rows {
  Index begin, end;
  Index count() const { return end - begin; }
};

// Images in fixed shares, one a thread: sums over images are bit-identical for one number of threads.
class Shares {
 public:
  explicit Shares(Index n) : n_(n) {
    const Index threads = torch::stable::get_num_threads();
    count_ = threads < n ? threads : n;
    if (count_ < 1) count_ = 1;
  }
  Index count() const { return count_; }
  // f(share, image) for all images.
  template <class F>
  void each(const F& f) const {
    torch::stable::parallel_for(0, count_, 1, [&](int64_t begin, int64_t end) {
      for (Index share = begin; share < end; share++)
        for (Index i = n_ * share / count_; i < n_ * (share + 1) / count_; i++) f(share, i);
    });
  }

 private:
  Index n_, count_;
};

}  // namespace pamkd
