// All outputs of a state's stencils from one halo tile of the state.
#pragma once

#include "cuda/stencil.cuh"

namespace pamkd {

// Tile, and the taps of two convolutions: the next one's are loaded while one is computed.
template <class T, int S>
constexpr int kForwardShared = OutputTile<S>::kHeight* pitch(OutputTile<S>::kWidth) * 32 + 2 * kMaxTaps * kChunk<T> * int(sizeof(float));

// The thread's outputs of one convolution. A sample is read once per kernel column and feeds every tap that needs it.
template <class T, int S, class K>
__device__ inline void depthwise(K, const T* tile, const float* taps, const Work<T>& work, float (&sum)[OutputTile<S>::kPixels][kVector<T>]) {
  using Tile = OutputTile<S>;
  constexpr int V = kVector<T>, P = Tile::kPixels, kPitch = pitch(Tile::kWidth), kFirst = kReach - K::reach;
  const T* from = tile + ((work.group * P * S + kFirst) * kPitch + work.column * S + kFirst) * kChunk<T> + work.lane * V;
#pragma unroll
  for (int kx = 0; kx < K::size; kx++) {
    float tap[K::size][V];
#pragma unroll
    for (int ky = 0; ky < K::size; ky++) load_tap(taps + (ky * K::size + kx) * kChunk<T> + work.lane * V, tap[ky]);
#pragma unroll
    for (int u = 0; u < (P - 1) * S + 2 * K::reach + 1; u++) {
      if (S == 2 && K::dilation == 2 && u % 2) continue;  // under no tap
      float sample[V];
      load(from + (u * kPitch + kx * K::dilation) * kChunk<T>, sample);
#pragma unroll
      for (int ky = 0; ky < K::size; ky++) {
        const int p = u - ky * K::dilation;
        if (p < 0 || p % S || p / S >= P) continue;
#pragma unroll
        for (int v = 0; v < V; v++) sum[p / S][v] += sample[v] * tap[ky][v];
      }
    }
  }
}

// Both pools of the 3x3 window around pixel (row, column) of the map; neither sees what lies beyond the edge.
template <class T, int S>
__device__ inline void pool(const T* tile, const StencilShape& shape, const Work<T>& work, int row, int column, float (&most)[kVector<T>],
                            float (&mean)[kVector<T>]) {
  constexpr int V = kVector<T>;
  int count = 0;
  for (int ky = -1; ky <= 1; ky++)
    for (int kx = -1; kx <= 1; kx++) {
      if (row + ky < 0 || row + ky >= shape.height || column + kx < 0 || column + kx >= shape.width) continue;
      const int r = row + ky - work.first_row * S + kReach, q = column + kx - work.first_column * S + kReach;
      float sample[V];
      load(tile + (r * pitch(OutputTile<S>::kWidth) + q) * kChunk<T> + work.lane * V, sample);
#pragma unroll
      for (int v = 0; v < V; v++) {
        if (count == 0 || sample[v] > most[v] || sample[v] != sample[v]) most[v] = sample[v];  // a NaN wins, as in PyTorch
        mean[v] = count == 0 ? sample[v] : mean[v] + sample[v];
      }
      count++;
    }
#pragma unroll
  for (int v = 0; v < V; v++) mean[v] /= count;
}

template <class T, int S>
__global__ void __launch_bounds__(kThreads, 4)
    stencil_forward(const StencilShape shape, const T* __restrict__ x, const T* __restrict__ weights, T* __restrict__ y) {
  using Tile = OutputTile<S>;
  constexpr int V = kVector<T>, P = Tile::kPixels;
  extern __shared__ __align__(16) unsigned char shared[];
  T* tile = reinterpret_cast<T*>(shared);
  float* taps = reinterpret_cast<float*>(tile + Tile::kHeight * pitch(Tile::kWidth) * kChunk<T>);
  const Work<T> work(shape, shape.to_width, Tile::kRows);
  const int column = work.first_column + work.column, row = work.first_row + work.group * P;

  // The thread's pixel p of output map `map`.
  const auto write = [&](int map, int p, const float(&values)[V]) {
    if (row + p >= shape.to_height || column >= shape.to_width) return;
    const long long image = (long long)map * shape.models * shape.images + work.image;
    work.place.write(y + ((image * shape.to_height + row + p) * shape.to_width + column) * shape.channels + work.channel(), values);
  };

  load_tile<T, Tile::kHeight, Tile::kWidth>(tile, x, work, work.first_row * S - kReach, work.first_column * S - kReach, shape.height,
                                            shape.width, shape.channels);
  if (shape.pools) {
    __syncthreads();
    for (int p = 0; p < P; p++) {
      if (row + p >= shape.to_height || column >= shape.to_width) continue;
      float most[V], mean[V];
      pool<T, S>(tile, shape, work, (row + p) * S, column * S, most, mean);
      write(shape.branches, p, most), write(shape.branches + 1, p, mean);
    }
    __syncthreads();
  }
  if (shape.branches == 0) return;
  rectify<T, Tile::kHeight, Tile::kWidth>(tile, work);
  load_taps(taps, weights, shape, work, 0);
  __syncthreads();
  for (int branch = 0; branch < shape.branches; branch++) {
    const float* now = taps + branch % 2 * kMaxTaps * kChunk<T>;
    if (branch + 1 < shape.branches) load_taps(taps + (branch + 1) % 2 * kMaxTaps * kChunk<T>, weights, shape, work, branch + 1);
    float sum[P][V] = {};
    with_kernel(shape, branch, [&](auto kernel) { depthwise<T, S>(kernel, tile, now, work, sum); });
#pragma unroll
    for (int p = 0; p < P; p++) write(branch, p, sum[p]);
    __syncthreads();
  }
}

}  // namespace pamkd
