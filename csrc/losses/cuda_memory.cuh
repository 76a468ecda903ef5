// SPDX-License-Identifier: MIT
// Scalar arithmetic of a CUDA thread, and the ways of logits between memory and registers.
//
// A kernel is compiled for logits that lie well (Dense: of one dtype, aligned, unmasked; they
// travel as they are stored, 16 bytes at a time) and for all others (General: one by one, in the
// arithmetic type, with the dtype looked up for each).
#pragma once

#include "losses/cuda_platform.h"
#include "losses/loss_args.h"
#include "losses/round_to_odd.h"
#include "losses/row_math.h"

namespace fastdistill::cuda {

inline constexpr int kAccessBytes = 16;

template <class T>
struct DeviceMath {
  using V = T;
  using Real = T;
  static FASTDISTILL_DEVICE T broadcast(T value) { return value; }
  static FASTDISTILL_DEVICE T infinity() { return static_cast<T>(INFINITY); }
  static FASTDISTILL_DEVICE float multiply_add(float a, float b, float c) {
    return ::fmaf(a, b, c);
  }
  static FASTDISTILL_DEVICE double multiply_add(double a, double b, double c) {
    return ::fma(a, b, c);
  }
  static FASTDISTILL_DEVICE T fused_multiply_add(T a, T b, T c) { return multiply_add(a, b, c); }
  static FASTDISTILL_DEVICE T at_least(T value, T floor) { return value < floor ? floor : value; }
  static FASTDISTILL_DEVICE float exp2(float value) { return platform::exp2(value); }
  static FASTDISTILL_DEVICE double exp2(double value) { return ::exp2(value); }
  static FASTDISTILL_DEVICE float log2(float value) { return ::log2f(value); }
  static FASTDISTILL_DEVICE double log2(double value) { return ::log2(value); }
};

// How a dtype lies in memory, and its elements from and to a value of the arithmetic type.
template <DType dtype>
struct Storage;
template <>
struct Storage<DType::kFloat64> {
  using Bits = double;
  static FASTDISTILL_DEVICE double widen(Bits bits) { return bits; }
  static FASTDISTILL_DEVICE Bits narrow(double value) { return value; }
};
template <>
struct Storage<DType::kFloat32> {
  using Bits = float;
  static FASTDISTILL_DEVICE float widen(Bits bits) { return bits; }
  template <class Real>
  static FASTDISTILL_DEVICE Bits narrow(Real value) {
    return static_cast<float>(value);
  }
};
template <>
struct Storage<DType::kBFloat16> {
  using Bits = std::uint16_t;
  static FASTDISTILL_DEVICE float widen(Bits bits) {
    return platform::float_of(static_cast<std::uint32_t>(bits) << 16);
  }
  static FASTDISTILL_DEVICE void widen_pair(std::uint32_t word, float& first, float& second) {
    first = platform::float_of(word << 16);
    second = platform::float_of(word & 0xFFFF0000u);
  }
  static FASTDISTILL_DEVICE std::uint32_t narrow_pair(float first, float second) {
    return platform::narrow_bfloat16_pair(first, second);
  }
  template <class Real>
  static FASTDISTILL_DEVICE Bits narrow(Real value) {
    return platform::narrow_bfloat16(round_to_odd(value));
  }
};
template <>
struct Storage<DType::kFloat16> {
  using Bits = std::uint16_t;
  static FASTDISTILL_DEVICE float widen(Bits bits) { return platform::widen_float16(bits); }
  static FASTDISTILL_DEVICE void widen_pair(std::uint32_t word, float& first, float& second) {
    first = platform::widen_float16(word & 0xFFFFu);
    second = platform::widen_float16(word >> 16);
  }
  static FASTDISTILL_DEVICE std::uint32_t narrow_pair(float first, float second) {
    return platform::narrow_float16_pair(first, second);
  }
  template <class Real>
  static FASTDISTILL_DEVICE Bits narrow(Real value) {
    return platform::narrow_float16(round_to_odd(value));
  }
};

// float64 logits make the arithmetic float64, so kernels in float32 never meet them.
template <class Real, class Action>
FASTDISTILL_DEVICE void with_storage(DType dtype, Action action) {
  switch (dtype) {
    case DType::kFloat64:
      if constexpr (sizeof(Real) == 8) action(Storage<DType::kFloat64>{});
      return;
    case DType::kFloat32:
      return action(Storage<DType::kFloat32>{});
    case DType::kBFloat16:
      return action(Storage<DType::kBFloat16>{});
    case DType::kFloat16:
      return action(Storage<DType::kFloat16>{});
  }
}

// The address of an element; rows may lie more than 2^31 elements apart.
FASTDISTILL_DEVICE const void* element(const void* base, DType dtype, std::int64_t index) {
  return static_cast<const char*>(base) + index * (dtype == DType::kFloat64   ? 8
                                                   : dtype == DType::kFloat32 ? 4
                                                                              : 2);
}

template <class Real>
FASTDISTILL_DEVICE Real load_one(const void* base, DType dtype, std::int64_t index) {
  Real value = 0;
  with_storage<Real>(dtype, [&](auto storage) {
    using S = decltype(storage);
    value = static_cast<Real>(S::widen(static_cast<const typename S::Bits*>(base)[index]));
  });
  return value;
}

template <class Real>
FASTDISTILL_DEVICE void store_one(void* base, DType dtype, std::int64_t index, Real value) {
  with_storage<Real>(dtype, [&](auto storage) {
    using S = decltype(storage);
    static_cast<typename S::Bits*>(base)[index] = S::narrow(value);
  });
}

// Elements that one or two accesses move.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T) < kAccessBytes ? kWidth * sizeof(T) : kAccessBytes) Group {
  T v[kWidth];
};

// 16-bit elements are widened and narrowed in pairs, a word of memory at once.
template <class S, class Real, int kWidth>
FASTDISTILL_DEVICE void widen_group(const Group<typename S::Bits, kWidth>& group,
                                    Real (&values)[kWidth]) {
  if constexpr (sizeof(typename S::Bits) == 2 && kWidth % 2 == 0) {
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      std::uint32_t word;
      memcpy(&word, group.v + j, sizeof(word));
      S::widen_pair(word, values[j], values[j + 1]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) values[j] = S::widen(group.v[j]);
  }
}
template <class S, class Real, int kWidth>
FASTDISTILL_DEVICE Group<typename S::Bits, kWidth> narrow_group(const Real (&values)[kWidth]) {
  Group<typename S::Bits, kWidth> group;
  if constexpr (sizeof(typename S::Bits) == 2 && kWidth % 2 == 0) {
#pragma unroll
    for (int j = 0; j < kWidth; j += 2) {
      const std::uint32_t word = S::narrow_pair(values[j], values[j + 1]);
      memcpy(group.v + j, &word, sizeof(word));
    }
  } else {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) group.v[j] = S::narrow(values[j]);
  }
  return group;
}

template <class T>
struct Pair {
  T student;
  T teacher;
};

template <DType dtype>
struct Dense {
  using Real = float;
  using InShared = Storage<dtype>;
  using Stored = typename InShared::Bits;
  static constexpr bool kIsDense = true;
  static constexpr int kVector = kAccessBytes / static_cast<int>(sizeof(Stored));
};

template <class RealType>
struct General {
  using Real = RealType;
  using InShared = Storage<sizeof(Real) == 8 ? DType::kFloat64 : DType::kFloat32>;
  using Stored = Real;
  static constexpr bool kIsDense = false;
  static constexpr int kVector = 4;
};

}  // namespace fastdistill::cuda
