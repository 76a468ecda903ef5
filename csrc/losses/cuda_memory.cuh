// SPDX-License-Identifier: MIT
// Scalar arithmetic of a CUDA thread, and the way of logits between memory and registers.
//
// Logits travel in quads: four elements, adjacent where alignment allows one wide access, else
// spread so that neighbouring threads touch neighbouring elements. The dtype is looked up per quad,
// not compiled in: a uniform branch costs less than sixteen copies of each kernel.
#pragma once

#include "losses/cuda_platform.h"
#include "losses/loss_args.h"
#include "losses/row_math.h"

namespace fastdistill::cuda {

inline constexpr int kQuad = 4;

template <class T>
struct DeviceMath {
  using V = T;
  using Real = T;
  static FASTDISTILL_DEVICE T broadcast(T value) { return value; }
  static FASTDISTILL_DEVICE T infinity() { return static_cast<T>(INFINITY); }
  static FASTDISTILL_DEVICE float multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
  static FASTDISTILL_DEVICE double multiply_add(double a, double b, double c) {
    return ::fma(a, b, c);
  }
  static FASTDISTILL_DEVICE T at_least(T value, T floor) { return value < floor ? floor : value; }
  static FASTDISTILL_DEVICE float exp2(float value) { return platform::exp2(value); }
  static FASTDISTILL_DEVICE double exp2(double value) { return ::exp2(value); }
  static FASTDISTILL_DEVICE float log2(float value) { return ::log2f(value); }
  static FASTDISTILL_DEVICE double log2(double value) { return ::log2(value); }
};

// How a dtype lies in memory; Wide is its exact value in a type that can be computed with.
template <DType dtype>
struct Storage;
template <>
struct Storage<DType::kFloat64> {
  using Bits = double;
  static FASTDISTILL_DEVICE double widen(double bits) { return bits; }
  static FASTDISTILL_DEVICE double narrow(double value) { return value; }
};
template <>
struct Storage<DType::kFloat32> {
  using Bits = float;
  static FASTDISTILL_DEVICE float widen(float bits) { return bits; }
  static FASTDISTILL_DEVICE float narrow(float value) { return value; }
};
template <>
struct Storage<DType::kBFloat16> {
  using Bits = std::uint16_t;
  static FASTDISTILL_DEVICE float widen(Bits bits) { return platform::widen_bfloat16(bits); }
  static FASTDISTILL_DEVICE Bits narrow(float value) { return platform::narrow_bfloat16(value); }
};
template <>
struct Storage<DType::kFloat16> {
  using Bits = std::uint16_t;
  static FASTDISTILL_DEVICE float widen(Bits bits) { return platform::widen_float16(bits); }
  static FASTDISTILL_DEVICE Bits narrow(float value) { return platform::narrow_float16(value); }
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

// Four elements as one or two 16-byte (or one 8-byte) accesses.
template <class T>
struct alignas(sizeof(T) == 2 ? 8 : 16) Quad {
  T v[kQuad];
};

// Which elements of a run [0, end) make up a quad.
struct Positions {
  std::int64_t first;
  std::int64_t step;  // 1 = adjacent, and then the quad is aligned
  std::int64_t end;

  FASTDISTILL_DEVICE std::int64_t at(int j) const { return first + j * step; }
  FASTDISTILL_DEVICE bool is_wide() const { return step == 1 && first + kQuad <= end; }
};

// Quad `iteration` of thread `rank` when `threads` threads walk over a run together.
FASTDISTILL_DEVICE Positions positions_of(std::int64_t iteration, int rank, int threads,
                                          std::int64_t end, bool adjacent) {
  const std::int64_t start = iteration * threads * kQuad;
  return adjacent ? Positions{start + rank * kQuad, 1, end} : Positions{start + rank, threads, end};
}

// The address of an element; rows may lie more than 2^31 elements apart.
FASTDISTILL_DEVICE const void* element(const void* base, DType dtype, std::int64_t index) {
  return static_cast<const char*>(base) + index * (dtype == DType::kFloat64   ? 8
                                                   : dtype == DType::kFloat32 ? 4
                                                                              : 2);
}

// Element j of the quad lies at base[offset_of(position)]. Positions past the end give `fill`.
template <class Real, class OffsetOf>
FASTDISTILL_DEVICE Quad<Real> load_quad(const void* base, DType dtype, const Positions& positions,
                                        Real fill, OffsetOf offset_of) {
  Quad<Real> quad = {{fill, fill, fill, fill}};
  with_storage<Real>(dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* elements = static_cast<const typename S::Bits*>(base);
    if (positions.is_wide()) {
      const auto bits = *reinterpret_cast<const Quad<typename S::Bits>*>(
          elements + offset_of(positions.first));
      for (int j = 0; j < kQuad; ++j) quad.v[j] = static_cast<Real>(S::widen(bits.v[j]));
      return;
    }
    for (int j = 0; j < kQuad; ++j) {
      const std::int64_t position = positions.at(j);
      if (position < positions.end) {
        quad.v[j] = static_cast<Real>(S::widen(elements[offset_of(position)]));
      }
    }
  });
  return quad;
}

template <class Real, class OffsetOf>
FASTDISTILL_DEVICE void store_quad(const Quad<Real>& quad, void* base, DType dtype,
                                   const Positions& positions, OffsetOf offset_of) {
  with_storage<Real>(dtype, [&](auto storage) {
    using S = decltype(storage);
    using Bits = typename S::Bits;
    using Wide = decltype(S::widen(Bits{}));
    auto* elements = static_cast<Bits*>(base);
    if (positions.is_wide()) {
      Quad<Bits> bits;
      for (int j = 0; j < kQuad; ++j) bits.v[j] = S::narrow(static_cast<Wide>(quad.v[j]));
      *reinterpret_cast<Quad<Bits>*>(elements + offset_of(positions.first)) = bits;
      return;
    }
    for (int j = 0; j < kQuad; ++j) {
      const std::int64_t position = positions.at(j);
      if (position < positions.end) {
        elements[offset_of(position)] = S::narrow(static_cast<Wide>(quad.v[j]));
      }
    }
  });
}

}  // namespace fastdistill::cuda
