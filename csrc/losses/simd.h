// SPDX-License-Identifier: MIT
// Vectors of float and double for the CPU kernels: the compiler's vector extensions plus the few
// instructions they cannot express. Included once per instruction set (see cpu_kernels.inl); every
// name lives in that build's own namespace, and no header with shared inline functions is included.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <utility>

#include "common/host_device.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif
inline constexpr int kFloatLanes = kVectorBytes / 4;
inline constexpr int kDoubleLanes = kVectorBytes / 8;

using VFloat = float __attribute__((vector_size(kVectorBytes)));
using VInt = int32_t __attribute__((vector_size(kVectorBytes)));
using VUint = uint32_t __attribute__((vector_size(kVectorBytes)));
using VDouble = double __attribute__((vector_size(kVectorBytes)));
using VLong = int64_t __attribute__((vector_size(kVectorBytes)));
// The same vectors at any address.
using VFloatUnaligned = float __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
using VDoubleUnaligned = double __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));

// Calls function(0) to function(n - 1), unrolled.
template <int n, class Function>
FASTDISTILL_HD void for_each(Function function) {
#pragma GCC unroll 8
  for (int k = 0; k < n; ++k) function(k);
}

template <class Real>
struct Math;

template <>
struct Math<float> {
  using Real = float;
  using V = VFloat;
  using Mask = VInt;
  static constexpr int kLanes = kFloatLanes;

  static FASTDISTILL_HD float infinity() { return __builtin_inff(); }
  static FASTDISTILL_HD V broadcast(float value) { return value - V{}; }
  static FASTDISTILL_HD V load(const float* p) {
    return *reinterpret_cast<const VFloatUnaligned*>(p);
  }
  static FASTDISTILL_HD void store(float* p, V v) { *reinterpret_cast<VFloatUnaligned*>(p) = v; }

  // The first `count` lanes; the others read as `fill` and are not touched in memory.
  static FASTDISTILL_HD V load_first(const float* p, int64_t count, float fill) {
#if defined(__AVX512F__)
    const auto lanes = static_cast<__mmask16>((1u << count) - 1u);
    return reinterpret_cast<V>(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), lanes, p));
#else
    V v = broadcast(fill);
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
#endif
  }
  static FASTDISTILL_HD void store_first(float* p, int64_t count, V v) {
#if defined(__AVX512F__)
    const auto lanes = static_cast<__mmask16>((1u << count) - 1u);
    _mm512_mask_storeu_ps(p, lanes, reinterpret_cast<__m512>(v));
#else
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
#endif
  }

  static FASTDISTILL_HD bool any(Mask mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask),
                                  reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#else
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
  }

  static FASTDISTILL_HD V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
    return reinterpret_cast<V>(_mm512_fmadd_ps(
        reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    return reinterpret_cast<V>(_mm256_fmadd_ps(
        reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
    return a * b + c;
#endif
  }

  // The same rounded once, on every instruction set.
  static FASTDISTILL_HD V fused_multiply_add(V a, V b, V c) {
#if defined(__FMA__)
    return multiply_add(a, b, c);
#else
    using Wide = double __attribute__((vector_size(2 * kVectorBytes)));
    return __builtin_convertvector(
        __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide) +
            __builtin_convertvector(c, Wide),
        V);
#endif
  }

  // max(v, limit); a NaN in v stays.
  static FASTDISTILL_HD V at_least(V v, V limit) {
#if defined(__AVX512F__)
    return reinterpret_cast<V>(
        _mm512_max_ps(reinterpret_cast<__m512>(limit), reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
    return reinterpret_cast<V>(
        _mm256_max_ps(reinterpret_cast<__m256>(limit), reinterpret_cast<__m256>(v)));
#else
    return v < limit ? limit : v;
#endif
  }

  // y = 2^(x + bias) for x <= 0, -inf included, within 1 ulp; where y is below 2^-126, where
  // float32 loses precision, 0 is allowed. Several at once, side by side: one waits for its own
  // results most of the time.
  template <int bias = 0, int n>
  static FASTDISTILL_HD void exp2(const V (&x)[n], V (&y)[n]) {
    V scale[n];  // x to the nearest integer
    V r[n];      // the rest in [-1/2, 1/2], exact
    for_each<n>([&](int k) {
#if defined(__AVX512F__)
      const V bounded = at_least(x[k], broadcast(-1e38f));  // the rest of -inf would be NaN
      scale[k] = reinterpret_cast<V>(_mm512_roundscale_ps(reinterpret_cast<__m512>(bounded), 0));
      r[k] = bounded - scale[k];
#else
      const V magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
      scale[k] = x[k] + magic;
      r[k] = x[k] - (scale[k] - magic);
#endif
    });
    // Minimax polynomial of 2^r, relative error 1.9e-9.
    constexpr float coefficients[] = {1.33999312e-3f, 9.61848896e-3f, 5.55032878e-2f,
                                      2.40226469e-1f, 6.93147206e-1f, 1.0f};
    for_each<n>([&](int k) { y[k] = broadcast(1.53458122e-4f); });
    for (const float coefficient : coefficients) {
      for_each<n>([&](int k) { y[k] = multiply_add(y[k], r[k], broadcast(coefficient)); });
    }
    for_each<n>([&](int k) {
#if defined(__AVX512F__)
      if constexpr (bias != 0) scale[k] += broadcast(bias);
      y[k] = reinterpret_cast<V>(
          _mm512_scalef_ps(reinterpret_cast<__m512>(y[k]), reinterpret_cast<__m512>(scale[k])));
#else
      // Unsigned, because far below -126, where it is not used, it wraps around.
      const VUint exponent =
          (reinterpret_cast<VUint>(scale[k]) - 0x4B400000u + static_cast<uint32_t>(127 + bias))
          << 23;
      y[k] = x[k] < broadcast(-126.0f - bias) ? V{} : y[k] * reinterpret_cast<V>(exponent);
#endif
    });
  }
  static FASTDISTILL_HD V exp2(V x) {
    const V one[1] = {x};
    V result[1];
    exp2(one, result);
    return result[0];
  }

  // The two halves of the lanes added up.
  static FASTDISTILL_HD VDouble sum_of_halves(V v) {
    return sum_of_halves(v, std::make_index_sequence<kLanes / 2>());
  }
  template <size_t... lane>
  static FASTDISTILL_HD VDouble sum_of_halves(V v, std::index_sequence<lane...>) {
    return __builtin_convertvector(__builtin_shufflevector(v, v, static_cast<int>(lane)...),
                                   VDouble) +
           __builtin_convertvector(
               __builtin_shufflevector(v, v, (static_cast<int>(lane) + kLanes / 2)...), VDouble);
  }

  // log2 of a positive normal number, within 2 ulp; NaN stays NaN.
  static FASTDISTILL_HD V log2(V x) {
    const VInt bits = reinterpret_cast<VInt>(x);
    // Split at sqrt(1/2), so that the mantissa's logarithm is centred on 0.
    const VInt exponent = (bits - 0x3F3504F3) >> 23;
    const V f = reinterpret_cast<V>(bits - (exponent << 23)) - 1.0f;
    // log2(1 + f) = f log2(e) + f^2 P(f), P minimax with relative error 4.1e-9.
    V y = broadcast(-0.109958719f);
    y = multiply_add(y, f, broadcast(0.186171407f));
    y = multiply_add(y, f, broadcast(-0.191055942f));
    y = multiply_add(y, f, broadcast(0.204600524f));
    y = multiply_add(y, f, broadcast(-0.239618414f));
    y = multiply_add(y, f, broadcast(0.288567484f));
    y = multiply_add(y, f, broadcast(-0.360696597f));
    y = multiply_add(y, f, broadcast(0.480898237f));
    y = multiply_add(y, f, broadcast(-0.721347352f));
    y = multiply_add(y * f, f, f * 1.92596303e-8f);  // the part of log2(e) below float32
    y = multiply_add(f, broadcast(1.44269502f), y);
    return x == x ? __builtin_convertvector(exponent, V) + y : x;
  }
};

template <>
struct Math<double> {
  using Real = double;
  using V = VDouble;
  using Mask = VLong;
  static constexpr int kLanes = kDoubleLanes;

  static FASTDISTILL_HD double infinity() { return __builtin_inf(); }
  static FASTDISTILL_HD V broadcast(double value) { return value - V{}; }
  static FASTDISTILL_HD V load(const double* p) {
    return *reinterpret_cast<const VDoubleUnaligned*>(p);
  }
  static FASTDISTILL_HD void store(double* p, V v) { *reinterpret_cast<VDoubleUnaligned*>(p) = v; }
  static FASTDISTILL_HD V load_first(const double* p, int64_t count, double fill) {
    V v = broadcast(fill);
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
  }
  static FASTDISTILL_HD void store_first(double* p, int64_t count, V v) {
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }
  static FASTDISTILL_HD bool any(Mask mask) {
    int64_t any = 0;
    for (int i = 0; i < kLanes; ++i) any |= mask[i];
    return any != 0;
  }
  static FASTDISTILL_HD V at_least(V v, V limit) { return v < limit ? limit : v; }
  static FASTDISTILL_HD V multiply_add(V a, V b, V c) {
    for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fma(a[i], b[i], c[i]);
    return c;
  }
  static FASTDISTILL_HD V fused_multiply_add(V a, V b, V c) { return multiply_add(a, b, c); }
  // float64 serves checks and oracles more than training: the C library's functions are exact
  // enough.
  static FASTDISTILL_HD V exp2(V x) {
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_exp2(x[i]);
    return x;
  }
  template <int bias = 0, int n>
  static FASTDISTILL_HD void exp2(const V (&x)[n], V (&y)[n]) {
    for_each<n>([&](int k) { y[k] = exp2(x[k]); });
  }
  static FASTDISTILL_HD V log2(V x) {
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_log2(x[i]);
    return x;
  }
};

// The larger of two, per lane; a NaN in v is passed over.
template <class V>
FASTDISTILL_HD V larger(V v, V most) {
  return v > most ? v : most;
}

// Moves lane i + distance to lane i, so that log2(lanes) steps reduce a vector.
template <int distance, class V, size_t... lane>
FASTDISTILL_HD V lanes_down(V v, std::index_sequence<lane...>) {
  return __builtin_shufflevector(
      v, v, (static_cast<int>(lane + distance) % static_cast<int>(sizeof...(lane)))...);
}

template <class M, int distance = M::kLanes / 2>
FASTDISTILL_HD typename M::Real horizontal_sum(typename M::V v) {
  v += lanes_down<distance>(v, std::make_index_sequence<M::kLanes>());
  if constexpr (distance > 1) {
    return horizontal_sum<M, distance / 2>(v);
  } else {
    return v[0];
  }
}

template <class M, int distance = M::kLanes / 2>
FASTDISTILL_HD typename M::Real horizontal_max(typename M::V v) {
  const typename M::V other = lanes_down<distance>(v, std::make_index_sequence<M::kLanes>());
  v = other > v ? other : v;
  if constexpr (distance > 1) {
    return horizontal_max<M, distance / 2>(v);
  } else {
    return v[0];
  }
}

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
