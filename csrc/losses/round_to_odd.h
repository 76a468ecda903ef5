// SPDX-License-Identifier: MIT
// The first of two roundings, from float64 by way of float32 to 16 bits. Rounding to odd keeps a
// trace of what was dropped, so that the second rounding, to nearest even, is as good as one from
// the float64: else a value just beside a midpoint of 16 bits would first become that midpoint.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/host_device.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

FASTDISTILL_HD float round_to_odd(float value) { return value; }

FASTDISTILL_HD float round_to_odd(double value) {
  const float near = static_cast<float>(value);
  const double error = value - static_cast<double>(near);
  uint32_t bits;
  memcpy(&bits, &near, sizeof(bits));
  if ((bits & 1u) != 0 || error == 0.0 || value != value) return near;
  // Patterns grow with the magnitude; infinite ones, of values that overflow, fall to the largest.
  bits += (error > 0.0) == (value > 0.0) ? 1u : ~0u;
  float odd;
  memcpy(&odd, &bits, sizeof(odd));
  return odd;
}

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
