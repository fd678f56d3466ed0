// The stencils that leave one state of a cell: depthwise convolutions of relu(x) (3x3, 5x5, each dilated by 1 or 2) and the
// max and average pool 3x3, all read from one halo tile. Kernels: stencil_forward.cuh, stencil_input.cuh (gradient of x),
// stencil_weight.cuh (gradient of the weights). This file has what they share: shape, tile geometry, loading.
//
// Maps are [models, images, height, width, channels], dense but for x, whose rows may be wider; outputs and their gradients [maps, models, images, to_height,
// to_width, channels] with the convolutions first, then max and average pool. Weights [models, weights] hold one block
// [channels, k, k] per convolution.
//
// A block has one tile of 16 columns of one image and one chunk of 32 bytes of channels, a sector of DRAM, so that also
// C = 16 has several blocks per image: 2 vectors x 16 columns x 4 groups of rows = 128 threads. A warp is one group: its
// lanes read 512 consecutive bytes of a tile row, free of bank conflicts at stride 1. Each thread has `rows / 4` output
// pixels below each other, which share the samples of a column. A halo of 4 pixels, what a 5x5 kernel with dilation 2
// reaches, makes the input tile 24 x 24 pixels (19 KB) at stride 1; at stride 2 the tile has 8 rows, 23 x 39 (29 KB).
// So every kernel stays below the 48 KB that need no opt-in, with 3 or more blocks per multiprocessor. On the 8 x 8 maps
// of a last stage half of the groups and half of the lanes idle; those maps are a sixteenth of the first stage's pixels.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/vector.cuh"

namespace pamkd {

constexpr int kMaxBranches = 32;  // depthwise convolutions of one call; DARTS has 4 edges x 4
constexpr int kLanes = 2, kColumns = 16, kGroups = 4, kThreads = kLanes * kColumns * kGroups;
constexpr int kReach = 4;
constexpr int kMaxTaps = 25;

template <class T>
constexpr int kChunk = kLanes * kVector<T>;  // channels of a block

struct StencilShape {
  int models, images, channels, height, width, to_height, to_width;
  int branches;  // depthwise convolutions
  bool pools;
  bool aligned;    // every vector of channels is whole and starts at a 16-byte boundary
  int pitch;       // elements from one pixel of x to the next
  int weights;     // elements per model
  int parameters;  // elements from one model's weights to the next's
  int kernel[kMaxBranches], dilation[kMaxBranches], offset[kMaxBranches];  // offset of the block of weights
};

__host__ __device__ inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// `kernel` and `dilation` of at most kMaxBranches convolutions.
inline StencilShape stencil_shape(int models, int images, int channels, int height, int width, int stride, bool pools, bool aligned,
                                  const std::vector<int64_t>& kernel, const std::vector<int64_t>& dilation) {
  StencilShape shape{};
  shape.models = models, shape.images = images, shape.channels = channels, shape.height = height, shape.width = width;
  shape.to_height = ceil_div(height, stride), shape.to_width = ceil_div(width, stride);
  shape.branches = int(kernel.size()), shape.pools = pools, shape.aligned = aligned, shape.pitch = channels;
  for (int i = 0; i < shape.branches; i++) {
    shape.kernel[i] = int(kernel[i]), shape.dilation[i] = int(dilation[i]), shape.offset[i] = shape.weights;
    shape.weights += channels * shape.kernel[i] * shape.kernel[i];
  }
  shape.parameters = shape.weights;
  return shape;
}

// blockIdx = (tile, chunk, model x image).
template <class T>
dim3 stencil_grid(const StencilShape& shape, int height, int width, int rows) {
  return dim3(ceil_div(height, rows) * ceil_div(width, kColumns), ceil_div(shape.channels, kChunk<T>), shape.models * shape.images);
}

// The tile of outputs that a block of the forward and the weight gradient kernel computes, and the input under it.
template <int S>
struct OutputTile {
  static constexpr int kRows = 16 / S, kPixels = kRows / kGroups;
  static constexpr int kHeight = (kRows - 1) * S + 1 + 2 * kReach, kWidth = (kColumns - 1) * S + 1 + 2 * kReach;
};

// Pixels from one row of a tile in shared memory to the next: odd, so that rows below each other start in different banks.
__host__ __device__ constexpr int pitch(int width) { return width | 1; }

// What a thread works on.
template <class T>
struct Work {
  int lane, column, group;     // in the block
  int first_row, first_column;  // of the block's tile in the map
  int first_channel;            // of the block
  long long image;              // model * images + image; with an x for each convolution + convolution * models * images
  int model;
  Place<T> place;  // of this thread's vector

  __device__ Work(const StencilShape& shape, int width, int rows)
      : lane(threadIdx.x % kLanes), column(threadIdx.x / kLanes % kColumns), group(threadIdx.x / (kLanes * kColumns)) {
    const int across = ceil_div(width, kColumns), tile = blockIdx.x;
    first_row = tile / across * rows, first_column = tile % across * kColumns;
    first_channel = blockIdx.y * kChunk<T>;
    image = blockIdx.z, model = blockIdx.z / shape.images % shape.models;
    place = {shape.channels - first_channel - lane * kVector<T>, shape.aligned};
  }
  __device__ int channel() const { return first_channel + lane * kVector<T>; }
};

// Copies H x W pixels of a map, from (row, column) on, into a tile; beyond the map's edges the tile is 0. `pixel` is the number of
// elements from one pixel of the map to the next.
template <class T, int H, int W>
__device__ inline void load_tile(T* tile, const T* map, const Work<T>& work, int row, int column, int height, int width, int pixel) {
  const T* image = map + work.image * height * width * pixel;
  for (int i = threadIdx.x; i < H * W * kLanes; i += kThreads) {  // the lane stays the thread's own
    const int r = i / kLanes / W, q = i / kLanes % W;
    const bool inside = row + r >= 0 && row + r < height && column + q >= 0 && column + q < width;
    Place<T> place = work.place;
    if (!inside) place.count = 0;
    const int at = inside ? ((row + r) * width + column + q) * pixel + work.channel() : 0;
    *reinterpret_cast<Packed<T>*>(tile + (r * pitch(W) + q) * kChunk<T> + work.lane * kVector<T>) = place.read(image + at);
  }
}

// relu in place, each thread on the pixels that it loaded. NaN stays, as in PyTorch.
template <class T, int H, int W>
__device__ inline void rectify(T* tile, const Work<T>& work) {
  for (int i = threadIdx.x; i < H * W * kLanes; i += kThreads) {
    const int pixel = i / kLanes;
    T* at = tile + (pixel / W * pitch(W) + pixel % W) * kChunk<T> + work.lane * kVector<T>;
#pragma unroll
    for (int v = 0; v < kVector<T>; v++)
      if (widened(at[v]) < 0) narrow(0, at[v]);
  }
}

// The weights of one convolution for the block's channels: taps [k * k, chunk] of float.
template <class T>
__device__ inline void load_taps(float* taps, const T* weights, const StencilShape& shape, const Work<T>& work, int branch) {
  const int size = shape.kernel[branch] * shape.kernel[branch];
  const T* from = weights + (long long)work.model * shape.parameters + shape.offset[branch] + work.first_channel * size;
  for (int i = threadIdx.x; i < size * kChunk<T>; i += kThreads) {
    const int channel = i / size;
    taps[i % size * kChunk<T> + channel] = work.first_channel + channel < shape.channels ? widened(from[i]) : 0;
  }
}

template <int V>
__device__ inline void load_tap(const float* tap, float (&to)[V]) {
#pragma unroll
  for (int v = 0; v < V; v += 4) {
    const Packed<float> four = *reinterpret_cast<const Packed<float>*>(tap + v);
#pragma unroll
    for (int i = 0; i < 4; i++) to[v + i] = four.values[i];
  }
}

template <int K, int D>
struct Kernel {
  static constexpr int size = K, dilation = D, reach = D * (K / 2);
};

// f(Kernel<K, D>{}) for the branch; the same path for all threads.
template <class F>
__device__ inline void with_kernel(const StencilShape& shape, int branch, const F& f) {
  if (shape.kernel[branch] == 3) {
    if (shape.dilation[branch] == 1)
      f(Kernel<3, 1>{});
    else
      f(Kernel<3, 2>{});
  } else {
    if (shape.dilation[branch] == 1)
      f(Kernel<5, 1>{});
    else
      f(Kernel<5, 2>{});
  }
}

}  // namespace pamkd
