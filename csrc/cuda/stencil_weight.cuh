// The gradient of the depthwise weights: each block sums its tile of one image into a row of a workspace, and a second
// kernel adds the rows in a fixed order. No atomics, so the result is the same in every run.
#pragma once

#include "cuda/stencil.cuh"

namespace pamkd {

// A thread has one kernel row of taps, all of its columns, and every kSegments-th strip of 4 pixels of the tile: a sample
// is read once for all columns. 8 segments x 2 vectors x 5 kernel rows are 80 threads for a 5x5 kernel, 48 for a 3x3.
constexpr int kSegments = 8, kStrip = 4;

// Input tile, gradient tile, and one partial sum per segment, tap and channel.
template <class T, int S>
constexpr int kWeightShared = (OutputTile<S>::kHeight * pitch(OutputTile<S>::kWidth) + OutputTile<S>::kRows * pitch(kColumns)) * 32 +
                              kSegments* kMaxTaps* kChunk<T>* int(sizeof(float));

template <class T, int S, class K>
__device__ inline void correlate(K, const T* tile, const T* gradient, float* partial) {
  using Tile = OutputTile<S>;
  constexpr int V = kVector<T>, kPitch = pitch(Tile::kWidth), kFirst = kReach - K::reach, kStrips = kColumns / kStrip;
  const int lane = threadIdx.x % kLanes, ky = threadIdx.x / kLanes % K::size, segment = threadIdx.x / (kLanes * K::size);
  if (segment >= kSegments) return;
  float sum[K::size][V] = {};
  for (int i = segment; i < Tile::kRows * kStrips; i += kSegments) {
    const int row = i / kStrips, column = i % kStrips * kStrip;
    float g[kStrip][V];
#pragma unroll
    for (int p = 0; p < kStrip; p++) load(gradient + (row * pitch(kColumns) + column + p) * kChunk<T> + lane * V, g[p]);
    const T* from = tile + ((row * S + ky * K::dilation + kFirst) * kPitch + column * S + kFirst) * kChunk<T> + lane * V;
#pragma unroll
    for (int u = 0; u < (kStrip - 1) * S + 2 * K::reach + 1; u++) {
      if (S == 2 && K::dilation == 2 && u % 2) continue;  // under no tap
      float sample[V];
      load(from + u * kChunk<T>, sample);
#pragma unroll
      for (int kx = 0; kx < K::size; kx++) {
        const int p = u - kx * K::dilation;
        if (p < 0 || p % S || p / S >= kStrip) continue;
#pragma unroll
        for (int v = 0; v < V; v++) sum[kx][v] += sample[v] * g[p / S][v];
      }
    }
  }
#pragma unroll
  for (int kx = 0; kx < K::size; kx++)
#pragma unroll
    for (int v = 0; v < V; v++) partial[((segment * K::size + ky) * K::size + kx) * kChunk<T> + lane * V + v] = sum[kx][v];
}

// Rows of the workspace [models, images * tiles, weights].
template <int S>
int stencil_partials(const StencilShape& shape) {
  return shape.images * ceil_div(shape.to_height, OutputTile<S>::kRows) * ceil_div(shape.to_width, kColumns);
}

template <class T, int S>
__global__ void __launch_bounds__(kThreads, 4)
    stencil_weight(const StencilShape shape, const T* __restrict__ grad, const T* __restrict__ x, float* __restrict__ workspace) {
  using Tile = OutputTile<S>;
  extern __shared__ __align__(16) unsigned char shared[];
  T* tile = reinterpret_cast<T*>(shared);
  T* gradient = tile + Tile::kHeight * pitch(Tile::kWidth) * kChunk<T>;
  float* partial = reinterpret_cast<float*>(gradient + Tile::kRows * pitch(kColumns) * kChunk<T>);
  const Work<T> work(shape, shape.to_width, Tile::kRows);
  const long long map = (long long)shape.models * shape.images * shape.to_height * shape.to_width * shape.channels;
  float* to = workspace + (work.image * gridDim.x + blockIdx.x) * shape.weights;

  load_tile<T, Tile::kHeight, Tile::kWidth>(tile, x, work, work.first_row * S - kReach, work.first_column * S - kReach, shape.height,
                                            shape.width, shape.channels);
  rectify<T, Tile::kHeight, Tile::kWidth>(tile, work);
  for (int branch = 0; branch < shape.branches; branch++) {
    load_tile<T, Tile::kRows, kColumns>(gradient, grad + branch * map, work, work.first_row, work.first_column, shape.to_height,
                                        shape.to_width, shape.channels);
    __syncthreads();
    with_kernel(shape, branch, [&](auto kernel) { correlate<T, S>(kernel, tile, gradient, partial); });
    __syncthreads();
    const int taps = shape.kernel[branch] * shape.kernel[branch];
    for (int i = threadIdx.x; i < taps * kChunk<T>; i += kThreads) {
      const int channel = i / taps, tap = i % taps;
      if (work.first_channel + channel >= shape.channels) continue;
      float sum = 0;
      for (int segment = 0; segment < kSegments; segment++) sum += partial[(segment * taps + tap) * kChunk<T> + channel];
      to[shape.offset[branch] + work.first_channel * taps + i] = sum;
    }
  }
}

// dweights [models, weights] = sum over the rows of the workspace. blockIdx = (32 weights, model); each of the four warps
// adds every fourth row.
constexpr int kSumColumns = 32, kSumShared = kThreads * int(sizeof(float));

template <class T>
__global__ void __launch_bounds__(kThreads, 4) stencil_weight_sum(const float* __restrict__ workspace, T* __restrict__ dweights, int rows, int weights) {
  extern __shared__ __align__(16) unsigned char shared[];
  float* partial = reinterpret_cast<float*>(shared);
  const int slice = threadIdx.x / kSumColumns, weight = blockIdx.x * kSumColumns + threadIdx.x % kSumColumns;
  float sum = 0;
  if (weight < weights)
    for (long long row = slice; row < rows; row += kThreads / kSumColumns) sum += workspace[((long long)blockIdx.y * rows + row) * weights + weight];
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (slice > 0 || weight >= weights) return;
  for (int i = 1; i < kThreads / kSumColumns; i++) sum += partial[i * kSumColumns + threadIdx.x];
  narrow(sum, dweights[(long long)blockIdx.y * weights + weight]);
}

}  // namespace pamkd
