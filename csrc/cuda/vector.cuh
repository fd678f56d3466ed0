// 16 bytes of neighbouring channels: the unit in which the kernels touch memory. Arithmetic is float32 in registers.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace pamkd {

template <class T>
constexpr int kVector = 16 / int(sizeof(T));

template <class T>
struct alignas(16) Packed {
  T values[kVector<T>];
};

__device__ inline float widened(float value) { return value; }
__device__ inline float widened(__half value) { return __half2float(value); }
__device__ inline float widened(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void narrow(float value, float& to) { to = value; }
__device__ inline void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

// The vector at a 16-byte boundary of shared memory, or of global memory where `Place` says so.
template <class T>
__device__ inline void load(const T* from, float (&to)[kVector<T>]) {
  const Packed<T> packed = *reinterpret_cast<const Packed<T>*>(from);
#pragma unroll
  for (int v = 0; v < kVector<T>; v++) to[v] = widened(packed.values[v]);
}

// Where a vector of channels lies in a map [pixels, channels]: the first `count` channels exist; with `aligned` (whole
// vectors at 16-byte boundaries) it is one access, else one per channel.
template <class T>
struct Place {
  int count;
  bool aligned;

  __device__ Packed<T> read(const T* from) const {
    Packed<T> packed;
    if (aligned && count > 0) return *reinterpret_cast<const Packed<T>*>(from);
#pragma unroll
    for (int v = 0; v < kVector<T>; v++) {
      if (v < count)
        packed.values[v] = from[v];
      else
        narrow(0, packed.values[v]);
    }
    return packed;
  }

  __device__ void write(T* to, const float (&values)[kVector<T>]) const {
    Packed<T> packed;
#pragma unroll
    for (int v = 0; v < kVector<T>; v++) narrow(values[v], packed.values[v]);
    if (aligned && count > 0) {
      *reinterpret_cast<Packed<T>*>(to) = packed;
      return;
    }
#pragma unroll
    for (int v = 0; v < kVector<T>; v++)
      if (v < count) to[v] = packed.values[v];
  }
};

}  // namespace pamkd
