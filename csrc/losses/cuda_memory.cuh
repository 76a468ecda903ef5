// SPDX-License-Identifier: MIT
// Scalar arithmetic of a CUDA thread, and the way of logits between memory and registers.
//
// Logits travel in quads: four elements, adjacent where alignment allows one wide access, else
// spread so that neighbouring threads touch neighbouring elements. The dtype is looked up per quad,
// not compiled in: a uniform branch costs less than sixteen copies of each kernel.
#pragma once

#include "losses/cuda_platform.h"
#include "losses/loss_args.h"
#include "losses/round_to_odd.h"
#include "losses/row_math.h"

namespace fastdistill::cuda {

inline constexpr int kQuad = 4;
inline constexpr int kLoadsInFlight = 2;  // quads per matrix and thread

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

// How a dtype lies in memory, and its elements from a value of the arithmetic type.
template <DType dtype>
struct Storage;
template <>
struct Storage<DType::kFloat64> {
  using Bits = double;
  static FASTDISTILL_DEVICE Bits narrow(double value) { return value; }
};
template <>
struct Storage<DType::kFloat32> {
  using Bits = float;
  template <class Real>
  static FASTDISTILL_DEVICE Bits narrow(Real value) {
    return static_cast<float>(value);
  }
};
template <>
struct Storage<DType::kBFloat16> {
  using Bits = std::uint16_t;
  template <class Real>
  static FASTDISTILL_DEVICE Bits narrow(Real value) {
    return platform::narrow_bfloat16(round_to_odd(value));
  }
};
template <>
struct Storage<DType::kFloat16> {
  using Bits = std::uint16_t;
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

// A quad as it came from memory. Looking at a value waits for its load, so all loads of a step are
// issued before the first is widened.
template <class Real>
struct RawQuad {
  std::uint32_t words[kQuad];  // two 16-bit elements per word if they were adjacent
  double wide[sizeof(Real) == 8 ? kQuad : 1];
};
struct alignas(16) FourWords {
  std::uint32_t v[4];
};
struct alignas(8) TwoWords {
  std::uint32_t v[2];
};

template <class T, class To, class OffsetOf>
FASTDISTILL_DEVICE void load_each(const void* base, const Positions& positions, OffsetOf offset_of,
                                  To (&to)[kQuad]) {
  for (int j = 0; j < kQuad; ++j) {
    const std::int64_t position = positions.at(j);
    if (position < positions.end) to[j] = static_cast<const T*>(base)[offset_of(position)];
  }
}

// Element j of the quad lies at base[offset_of(positions.at(j))].
template <class Real, class OffsetOf>
FASTDISTILL_DEVICE RawQuad<Real> load_raw(const void* base, DType dtype, const Positions& positions,
                                          OffsetOf offset_of) {
  RawQuad<Real> raw = {};
  if constexpr (sizeof(Real) == 8) {
    if (dtype == DType::kFloat64) {
      if (positions.is_wide()) {
        const double* first = static_cast<const double*>(base) + offset_of(positions.first);
        const auto quad = *reinterpret_cast<const Quad<double>*>(first);
        for (int j = 0; j < kQuad; ++j) raw.wide[j] = quad.v[j];
      } else {
        load_each<double>(base, positions, offset_of, raw.wide);
      }
      return raw;
    }
  }
  if (dtype == DType::kFloat32) {
    if (positions.is_wide()) {
      const std::uint32_t* first =
          static_cast<const std::uint32_t*>(base) + offset_of(positions.first);
      const auto quad = *reinterpret_cast<const FourWords*>(first);
      for (int j = 0; j < kQuad; ++j) raw.words[j] = quad.v[j];
    } else {
      load_each<std::uint32_t>(base, positions, offset_of, raw.words);
    }
  } else if (positions.is_wide()) {
    const std::uint16_t* first =
        static_cast<const std::uint16_t*>(base) + offset_of(positions.first);
    const auto quad = *reinterpret_cast<const TwoWords*>(first);
    raw.words[0] = quad.v[0];
    raw.words[1] = quad.v[1];
  } else {
    load_each<std::uint16_t>(base, positions, offset_of, raw.words);
  }
  return raw;
}

// Positions past the end get `fill`.
template <class Real>
FASTDISTILL_DEVICE Quad<Real> widen(const RawQuad<Real>& raw, DType dtype,
                                    const Positions& positions, Real fill) {
  Quad<Real> quad;
  const bool is_wide = positions.is_wide();
  for (int j = 0; j < kQuad; ++j) {
    Real value;
    if (dtype == DType::kFloat64) {
      value = static_cast<Real>(raw.wide[sizeof(Real) == 8 ? j : 0]);
    } else if (dtype == DType::kFloat32) {
      value = static_cast<Real>(platform::float_of(raw.words[j]));
    } else {
      const std::uint32_t packed = raw.words[j / 2] >> (16 * (j % 2)) & 0xFFFFu;
      const std::uint32_t bits = is_wide ? packed : raw.words[j];
      value = static_cast<Real>(dtype == DType::kBFloat16 ? platform::float_of(bits << 16)
                                                          : platform::widen_float16(bits));
    }
    quad.v[j] = is_wide || positions.at(j) < positions.end ? value : fill;
  }
  return quad;
}

template <class Real, class OffsetOf>
FASTDISTILL_DEVICE void store_quad(const Quad<Real>& quad, void* base, DType dtype,
                                   const Positions& positions, OffsetOf offset_of) {
  with_storage<Real>(dtype, [&](auto storage) {
    using S = decltype(storage);
    using Bits = typename S::Bits;
    auto* elements = static_cast<Bits*>(base);
    if (positions.is_wide()) {
      Quad<Bits> bits;
      for (int j = 0; j < kQuad; ++j) bits.v[j] = S::narrow(quad.v[j]);
      *reinterpret_cast<Quad<Bits>*>(elements + offset_of(positions.first)) = bits;
      return;
    }
    for (int j = 0; j < kQuad; ++j) {
      const std::int64_t position = positions.at(j);
      if (position < positions.end) {
        elements[offset_of(position)] = S::narrow(quad.v[j]);
      }
    }
  });
}

}  // namespace fastdistill::cuda
