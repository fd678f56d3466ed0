// The gradient of a state: what all stencils that leave it send back, summed in registers and written once.
#pragma once

#include "cuda/stencil.cuh"

namespace pamkd {

// A block has 16 x 16 pixels of the state for both strides. `GradientTile` is what a stencil of this reach needs of its
// output's gradient: output pixels whose window touches the block, from first_row / S - reach / S on.
template <int S, int REACH>
struct GradientTile {
  static constexpr int kBefore = REACH / S, kSide = (15 + REACH) / S + kBefore + 1;
};
constexpr int kInputRows = 16, kInputPixels = kInputRows / kGroups;

// One tile, the taps of one convolution, and the position of the maximum of each pool window.
template <class T, int S>
constexpr int kInputTile = GradientTile<1, kReach>::kSide* pitch(GradientTile<1, kReach>::kSide) * 32;
template <class T, int S>
constexpr int kInputShared = kInputTile<T, S> + kMaxTaps* kChunk<T> * int(sizeof(float)) +
                             GradientTile<S, 1>::kSide * GradientTile<S, 1>::kSide* kChunk<T>;

// Adds one convolution: dx(i) += sum over taps of g((i + reach - tap * dilation) / S) * w(tap) where that is whole.
template <class T, int S, class K>
__device__ inline void spread(K, const T* tile, const float* taps, const Work<T>& work, float (&sum)[kInputPixels][kVector<T>]) {
  using Tile = GradientTile<S, K::reach>;
  constexpr int V = kVector<T>, kPitch = pitch(Tile::kSide);
  const T* from = tile + work.group * (kInputPixels / S) * kPitch * kChunk<T> + work.lane * V;
#pragma unroll
  for (int kx = 0; kx < K::size; kx++) {
    const int column = work.column + K::reach - kx * K::dilation;
    if (S == 2 && column % 2) continue;
    float tap[K::size][V];
#pragma unroll
    for (int ky = 0; ky < K::size; ky++) load_tap(taps + (ky * K::size + kx) * kChunk<T> + work.lane * V, tap[ky]);
#pragma unroll
    for (int u = 0; u < (kInputPixels - 1 + K::reach) / S + Tile::kBefore + 1; u++) {
      float g[V];
      load(from + (u * kPitch + column / S + Tile::kBefore) * kChunk<T>, g);
#pragma unroll
      for (int ky = 0; ky < K::size; ky++) {
        const int p = S * (u - Tile::kBefore) - K::reach + ky * K::dilation;
        if (p < 0 || p >= kInputPixels) continue;
#pragma unroll
        for (int v = 0; v < V; v++) sum[p][v] += g[v] * tap[ky][v];
      }
    }
  }
}

// For every pool window that touches the block: which of its nine samples is the first maximum, recomputed from the state.
template <class T, int S>
__device__ inline void find_maxima(unsigned char* first, const T* tile, const StencilShape& shape, const Work<T>& work) {
  using Tile = GradientTile<S, 1>;
  constexpr int V = kVector<T>, kSide = (Tile::kSide - 1) * S + 3;  // of the tile of the state
  for (int i = threadIdx.x; i < Tile::kSide * Tile::kSide * kLanes; i += kThreads) {
    const int r = i / kLanes / Tile::kSide, q = i / kLanes % Tile::kSide;
    const int row = (work.first_row / S - Tile::kBefore + r) * S, column = (work.first_column / S - Tile::kBefore + q) * S;
    float most[V] = {};
    unsigned char at[V];
#pragma unroll
    for (int v = 0; v < V; v++) at[v] = 9;  // no sample yet
    for (int t = 0; t < 9; t++) {
      const int y = row + t / 3 - 1, x = column + t % 3 - 1;
      if (y < 0 || y >= shape.height || x < 0 || x >= shape.width) continue;
      float sample[V];
      load(tile + ((r * S + t / 3) * pitch(kSide) + q * S + t % 3) * kChunk<T> + work.lane * V, sample);
#pragma unroll
      for (int v = 0; v < V; v++)
        if (at[v] == 9 || sample[v] > most[v] || sample[v] != sample[v]) most[v] = sample[v], at[v] = t;
    }
#pragma unroll
    for (int v = 0; v < V; v++) first[(r * Tile::kSide + q) * kChunk<T> + work.lane * V + v] = at[v];
  }
}

// f(p, window's index in the tile, its row and column in the output, tap) for the up to nine windows over each pixel.
template <class T, int S, class F>
__device__ inline void each_window(const StencilShape& shape, const Work<T>& work, const F& f) {
  using Tile = GradientTile<S, 1>;
#pragma unroll
  for (int p = 0; p < kInputPixels; p++)
    for (int t = 0; t < 9; t++) {
      const int y = work.group * kInputPixels + p + 1 - t / 3, x = work.column + 1 - t % 3;
      if (S == 2 && (y % 2 || x % 2)) continue;
      const int row = work.first_row / S + y / S, column = work.first_column / S + x / S;
      if (row < 0 || row >= shape.to_height || column < 0 || column >= shape.to_width) continue;
      f(p, (y / S + Tile::kBefore) * Tile::kSide + x / S + Tile::kBefore, row, column, t);
    }
}

__device__ inline int samples(int center, int size) { return 1 + (center > 0) + (center + 1 < size); }

// dx, or with `add` what it is to be added to, has the rows of x. `paired`: each convolution has an x and a dx of its own,
// [convolutions, models, images, ...], and a block one of them.
template <class T, int S>
__global__ void __launch_bounds__(kThreads, 4) stencil_input(const StencilShape shape, const T* __restrict__ grad, const T* __restrict__ x,
                                                          const T* __restrict__ weights, T* __restrict__ dx, const bool paired, const bool add) {
  constexpr int V = kVector<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  T* tile = reinterpret_cast<T*>(shared);
  float* taps = reinterpret_cast<float*>(shared + kInputTile<T, S>);
  unsigned char* first = reinterpret_cast<unsigned char*>(taps + kMaxTaps * kChunk<T>);
  const Work<T> work(shape, shape.width, kInputRows);
  const long long map = (long long)shape.models * shape.images * shape.to_height * shape.to_width * shape.channels;

  const auto load_gradient = [&](auto gradient_tile, int index) {
    using Tile = decltype(gradient_tile);
    load_tile<T, Tile::kSide, Tile::kSide>(tile, grad + index * map, work, work.first_row / S - Tile::kBefore,
                                           work.first_column / S - Tile::kBefore, shape.to_height, shape.to_width, shape.channels);
  };
  const int own = blockIdx.z / shape.images / shape.models;  // with `paired`; its gradient lies at work.image
  float sum[kInputPixels][V] = {};
  for (int branch = paired ? own : 0; branch < (paired ? own + 1 : shape.branches); branch++) {
    with_kernel(shape, branch, [&](auto kernel) { load_gradient(GradientTile<S, decltype(kernel)::reach>{}, paired ? 0 : branch); });
    load_taps(taps, weights, shape, work, branch);
    __syncthreads();
    with_kernel(shape, branch, [&](auto kernel) { spread<T, S>(kernel, tile, taps, work, sum); });
    __syncthreads();
  }
  const int row = work.first_row + work.group * kInputPixels, column = work.first_column + work.column;
  const auto pixel = [&](int p) { return ((work.image * shape.height + row + p) * shape.width + column) * shape.pitch + work.channel(); };
#pragma unroll
  for (int p = 0; p < kInputPixels; p++) {  // through relu
    if (row + p >= shape.height || column >= shape.width) continue;
    const Packed<T> own = work.place.read(x + pixel(p));
#pragma unroll
    for (int v = 0; v < V; v++)
      if (widened(own.values[v]) <= 0) sum[p][v] = 0;
  }
  if (shape.pools) {
    using Tile = GradientTile<S, 1>;
    constexpr int kSide = (Tile::kSide - 1) * S + 3;
    load_tile<T, kSide, kSide>(tile, x, work, work.first_row - Tile::kBefore * S - 1, work.first_column - Tile::kBefore * S - 1,
                               shape.height, shape.width, shape.pitch);
    __syncthreads();
    find_maxima<T, S>(first, tile, shape, work);
    __syncthreads();
    load_gradient(Tile{}, shape.branches);
    __syncthreads();
    const auto gradient = [&](int window, float(&g)[V]) {
      load(tile + (window / Tile::kSide * pitch(Tile::kSide) + window % Tile::kSide) * kChunk<T> + work.lane * V, g);
    };
    each_window<T, S>(shape, work, [&](int p, int window, int, int, int tap) {
      float g[V];
      gradient(window, g);
#pragma unroll
      for (int v = 0; v < V; v++)
        if (first[window * kChunk<T> + work.lane * V + v] == tap) sum[p][v] += g[v];
    });
    __syncthreads();
    load_gradient(Tile{}, shape.branches + 1);
    __syncthreads();
    each_window<T, S>(shape, work, [&](int p, int window, int to_row, int to_column, int) {
      float g[V];
      gradient(window, g);
      const float share = 1.f / (samples(to_row * S, shape.height) * samples(to_column * S, shape.width));
#pragma unroll
      for (int v = 0; v < V; v++) sum[p][v] += g[v] * share;
    });
  }
#pragma unroll
  for (int p = 0; p < kInputPixels; p++) {
    if (row + p >= shape.height || column >= shape.width) continue;
    if (add) {
      const Packed<T> before = work.place.read(dx + pixel(p));
#pragma unroll
      for (int v = 0; v < V; v++) sum[p][v] += widened(before.values[v]);
    }
    work.place.write(dx + pixel(p), sum[p]);
  }
}

}  // namespace pamkd
