// SPDX-License-Identifier: MIT
// Rows of any logits dtype to and from the arithmetic type of the CPU kernels. Written so that the
// compiler vectorises the loops with the instruction set of the including build.
#pragma once

#include <stdint.h>

#include "common/host_device.h"
#include "losses/loss_args.h"
#include "losses/round_to_odd.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

FASTDISTILL_HD uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

FASTDISTILL_HD float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

FASTDISTILL_HD float widen_bfloat16(uint16_t half) {
  return float_of(static_cast<uint32_t>(half) << 16);
}

FASTDISTILL_HD uint16_t narrow_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
  return static_cast<uint16_t>(value == value ? rounded : 0x7FC0u);
}

FASTDISTILL_HD float widen_float16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFFu) << 13;
  // As a float32 pattern the magnitude is 2^112 too small; multiplying also mends denormals.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7F800000u;
  return float_of(sign | (magnitude >= 0x0F800000u ? special : finite));
}

FASTDISTILL_HD uint16_t narrow_float16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  // Normal: rebias the exponent and round to nearest even on the 13 dropped bits.
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  // Denormal: adding 0.5 lines the mantissa up with float16's smallest step, 2^-24.
  const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u;
  const uint32_t finite = magnitude < 0x38800000u ? denormal : normal;
  const uint32_t bounded = finite > 0x7C00u ? 0x7C00u : finite;
  const uint32_t overflow = magnitude >= 0x477FF000u ? 0x7C00u : bounded;
  return static_cast<uint16_t>(sign | (magnitude > 0x7F800000u ? 0x7E00u : overflow));
}

inline void* at(const void* data, DType dtype, int64_t index) {
  return const_cast<char*>(static_cast<const char*>(data)) + index * element_bytes(dtype);
}

template <class Real>
inline void widen_row(const Matrix& matrix, int64_t row, int64_t count, Real* out) {
  const void* in = at(matrix.data, matrix.dtype, row * matrix.row_stride);
  switch (matrix.dtype) {
    case DType::kFloat64:
      for (int64_t i = 0; i < count; ++i)
        out[i] = static_cast<Real>(static_cast<const double*>(in)[i]);
      return;
    case DType::kFloat32:
      for (int64_t i = 0; i < count; ++i)
        out[i] = static_cast<Real>(static_cast<const float*>(in)[i]);
      return;
    case DType::kBFloat16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = static_cast<Real>(widen_bfloat16(static_cast<const uint16_t*>(in)[i]));
      }
      return;
    case DType::kFloat16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = static_cast<Real>(widen_float16(static_cast<const uint16_t*>(in)[i]));
      }
      return;
  }
}

template <class Real>
inline void narrow_row(const Real* in, int64_t count, DType dtype, void* out) {
  switch (dtype) {
    case DType::kFloat64:
      for (int64_t i = 0; i < count; ++i) static_cast<double*>(out)[i] = static_cast<double>(in[i]);
      return;
    case DType::kFloat32:
      for (int64_t i = 0; i < count; ++i) static_cast<float*>(out)[i] = static_cast<float>(in[i]);
      return;
    case DType::kBFloat16:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<uint16_t*>(out)[i] = narrow_bfloat16(round_to_odd(in[i]));
      }
      return;
    case DType::kFloat16:
      for (int64_t i = 0; i < count; ++i) {
        static_cast<uint16_t*>(out)[i] = narrow_float16(round_to_odd(in[i]));
      }
      return;
  }
}

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
