#include "cpu/draws.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/load.h"
#include "cpu/philox.h"

namespace pamkd {
namespace PAMKD_LEVEL {
namespace {

// Words of so many counters; pairs of them as wide integers.
template <int N>
struct Lanes {
  typedef uint32_t word __attribute__((vector_size(N * 4)));
  typedef int32_t integer __attribute__((vector_size(N * 4)));
  typedef uint64_t wide __attribute__((vector_size(N * 4)));
};

// Of the instructions that the compiler takes by itself a product of all 64 bits is three times as slow, and a shift waits for the unit
// that multiplies. (GCC 12 warns of those that are not masked.)
struct Halves {
  template <class U>
  static PAMKD_INLINE U product(U x, uint32_t m) {
#if defined(__AVX512F__)
    if constexpr (sizeof(U) == 64) return U(_mm512_maskz_mul_epu32(0xff, __m512i(x), _mm512_set1_epi64(m)));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(U) == 32) return U(_mm256_mul_epu32(__m256i(x), _mm256_set1_epi64x(m)));
#endif
    return (x & 0xffffffffu) * uint64_t(m);
  }
  template <class U>
  static PAMKD_INLINE U high(U x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(U) == 64) return U(_mm512_maskz_shuffle_epi32(0xffff, __m512i(x), _MM_PERM_DDBB));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(U) == 32) return U(_mm256_shuffle_epi32(__m256i(x), 0xf5));
#endif
    return x >> 32;
  }
};

template <class F>
PAMKD_INLINE F square_root(F x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 64) return F(_mm512_maskz_sqrt_ps(0xffff, __m512(x)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(F) == 32) return F(_mm256_sqrt_ps(__m256(x)));
#endif
  for (unsigned i = 0; i < sizeof(F) / sizeof(float); i++) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

// Two normal numbers from two words by Box and Muller's transform: a radius from the first, an angle in the first quadrant and
// two signs from the second.
template <class F, class W>
PAMKD_INLINE void normals(W radius, W angle, F& first, F& second) {
  if constexpr (sizeof(F) == sizeof(W)) {
    using I = typename Lanes<sizeof(W) / 4>::integer;
    // -2 ln u, u = (2 k + 1) / 2^24 = (1 + f) 2^e with 1 + f between the square roots of 1/2 and of 2. Coefficients: least largest
    // errors of float64 fits, 3e-8 of the value here, 2e-9 and 2e-8 of the sine and cosine below.
    const I bits = I(__builtin_convertvector(I(radius >> 9 << 1 | 1), F)) + (0x3f800000 - 0x3f3504f3);
    const F f = F((bits & 0x7fffff) + 0x3f3504f3) - 1.0f, e = __builtin_convertvector((bits >> 23) - (127 + 24), F);
    F p = f * -0.1783127422f + 0.2869962076f;
    p = p * f - 0.2975499292f;
    p = p * f + 0.3313137201f;
    p = p * f - 0.3993071389f;
    p = p * f + 0.5000349150f;
    p = p * f - 0.6666771791f;
    const F r = square_root<F>(f * f * (p * f + 1.0f) - 2.0f * f - 1.3862943611f * e);
    // sine and cosine of x pi / 4, over the square root of 2, x = (2 j + 1) / 2^23 - 1; the angle is (1 + x) pi / 4.
    const F x = __builtin_convertvector(I((angle >> 6 & 0xfffffe) | 1) - 0x800000, F) * 0x1p-23f, xx = x * x;
    const F s = x * (((xx * -2.5423675e-05f + 1.7607009e-03f) * xx - 5.7095644e-02f) * xx + 0.555360366f);
    const F c = ((xx * -2.25482557e-04f + 1.12075825e-02f) * xx - 0.218088881f) * xx + 0.707106762f;
    first = F(W(r * (c - s)) ^ (angle & 0x80000000u));
    second = F(W(r * (c + s)) ^ (angle << 1 & 0x80000000u));
  } else {  // float64
    for (unsigned i = 0; i < sizeof(W) / 4; i++) {
      const double r = __builtin_sqrt(-2 * __builtin_log((2 * double(radius[i] >> 9) + 1) * 0x1p-24));
      const double phi = (2 * double(angle[i] >> 7 & 0x7fffff) + 1) * (0x1p-25 * 3.14159265358979323846);
      first[i] = __builtin_cos(phi) * (angle[i] >> 31 ? -r : r);
      second[i] = __builtin_sin(phi) * (angle[i] >> 30 & 1 ? -r : r);
    }
  }
}

struct Noise {
  template <class F, class W>
  PAMKD_INLINE void operator()(const W* words, F* values) const {
    normals<F>(words[0], words[1], values[0], values[1]);
    normals<F>(words[2], words[3], values[2], values[3]);
  }
};

// 1 where a value is kept, else 0.
struct Kept {
  uint32_t dropped;
  template <class F, class W>
  PAMKD_INLINE void operator()(const W* words, F* values) const {
    for (int j = 0; j < 4; j++) {
      const typename Lanes<sizeof(W) / 4>::integer kept = words[j] >= dropped;
      values[j] = __builtin_convertvector(kept & 1, F);
    }
  }
};

// use(vectors, place, values[4], count): the values drawn for as many of four pixels, from `place` on, of the vectors' blocks of
// pixels; the next block begins four pixels further.
template <class T, class D, class Use>
PAMKD_INLINE void each_four(const D& drawn, Draw draw, Index group, Index pixels, const Use& use) {
  using L = Widest<T>;
  constexpr int B = L::vectors, N = B * kBlock;
  using Word = typename Lanes<N>::word;
  using Wide = typename Lanes<N>::wide;
  Word block, channel;
  for (int i = 0; i < N; i++) block[i] = i / kBlock, channel[i] = group * kBlock + i % kBlock;
  for (Index p = 0; p < pixels; p += 4 * B, block += B) {
    const Wide image = Wide{} + draw.image, use_of = Wide{} + draw.use;
    Wide counters[2][4] = {{Wide(block), Wide(channel), image, use_of},  // of the even lanes and of the odd ones
                           {Halves::high(Wide(block)), Halves::high(Wide(channel)), image, use_of}};
    philox<Halves>(counters, draw.seed);
    Word words[4];
    for (int j = 0; j < 4; j++) words[j] = Word((counters[0][j] & 0xffffffffu) | counters[1][j] << 32);
    typename L::type values[4];
    drawn(words, values);
    if (p + 4 * B <= pixels) {
      use(L{}, p * kBlock, values, 4);
      continue;
    }
    for (int b = 0; b < B && p + 4 * b < pixels; b++) {
      V<T> part[4];
      for (int j = 0; j < 4; j++) __builtin_memcpy(&part[j], reinterpret_cast<const T*>(&values[j]) + b * kBlock, sizeof(V<T>));
      use(One<T>{}, (p + 4 * b) * kBlock, part, int(pixels - p - 4 * b < 4 ? pixels - p - 4 * b : 4));
    }
  }
}

// y += a * value, or a * value * x where x is given.
template <class T, class D>
PAMKD_INLINE void mix(T* y, const T* x, const T* a, const D& drawn, Draw draw, Index groups, Index pixels) {
  for (Index g = 0; g < groups; g++, y += pixels * kBlock) {
    const V<T> scale = load(a + g * kBlock);
    each_four<T>(drawn, draw, g, pixels, [&](auto vectors, Index at, const auto* values, int count) __attribute__((always_inline)) {
      using L = decltype(vectors);
      for (int j = 0; j < count; j++, at += kBlock) {
        auto term = L::both(scale) * values[j];
        if (x) term *= L::load(x + at, 4 * kBlock);
        L::store(y + at, 4 * kBlock, L::load(y + at, 4 * kBlock) + term);
      }
    });
    if (x) x += pixels * kBlock;
  }
}

// sums += sum g * value, or g * value * x.
template <class T, class D>
PAMKD_INLINE void dot(const T* g, const T* x, T* sums, const D& drawn, Draw draw, Index groups, Index pixels) {
  for (Index k = 0; k < groups; k++, g += pixels * kBlock, sums += kBlock) {
    typename Widest<T>::type sum[4] = {};
    V<T> rest = {};
    each_four<T>(drawn, draw, k, pixels, [&](auto vectors, Index at, const auto* values, int count) __attribute__((always_inline)) {
      using L = decltype(vectors);
      for (int j = 0; j < count; j++, at += kBlock) {
        auto term = L::load(g + at, 4 * kBlock) * values[j];
        if (x) term *= L::load(x + at, 4 * kBlock);
        if constexpr (L::vectors == Widest<T>::vectors)
          sum[j] += term;
        else
          rest += term;
      }
    });
    store(sums, load(sums) + (Widest<T>::sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest));
    if (x) x += pixels * kBlock;
  }
}

template <class T>
void mix_noise(T* y, const T* a, Draw draw, Index groups, Index pixels) {
  mix<T>(y, nullptr, a, Noise(), draw, groups, pixels);
}

template <class T>
void dot_noise(const T* g, T* sums, Draw draw, Index groups, Index pixels) {
  dot<T>(g, nullptr, sums, Noise(), draw, groups, pixels);
}

template <class T>
void mix_kept(T* y, const T* x, const T* a, uint32_t dropped, Draw draw, Index groups, Index pixels) {
  mix<T>(y, x, a, Kept{dropped}, draw, groups, pixels);
}

template <class T>
void dot_kept(const T* g, const T* x, T* sums, uint32_t dropped, Draw draw, Index groups, Index pixels) {
  dot<T>(g, x, sums, Kept{dropped}, draw, groups, pixels);
}

template <class T>
const DrawKernels<T>& table() {
  static constexpr DrawKernels<T> kernels{mix_noise<T>, dot_noise<T>, mix_kept<T>, dot_kept<T>};
  return kernels;
}

}  // namespace

const DrawKernels<float>& draws_float() { return table<float>(); }
const DrawKernels<double>& draws_double() { return table<double>(); }

}  // namespace PAMKD_LEVEL
}  // namespace pamkd
