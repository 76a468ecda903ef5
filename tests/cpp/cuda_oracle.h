// SPDX-License-Identifier: MIT
// One distillation problem for the CUDA kernels' tests: random inputs in the layout asked for, and
// loss and gradient by the textbook formulas in long double, written without a look at the kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "losses/loss_args.h"

namespace fastdistill::testing {

using Exact = long double;
inline constexpr Exact kInfinity = std::numeric_limits<Exact>::infinity();
inline constexpr Exact kNan = std::numeric_limits<Exact>::quiet_NaN();

// Value of a stored element, by the formats' definitions.
inline Exact decode(const unsigned char* at, DType dtype) {
  if (dtype == DType::kFloat64 || dtype == DType::kFloat32) {
    double wide;
    float narrow;
    std::memcpy(dtype == DType::kFloat64 ? static_cast<void*>(&wide) : &narrow, at,
                dtype == DType::kFloat64 ? 8 : 4);
    return dtype == DType::kFloat64 ? Exact(wide) : Exact(narrow);
  }
  std::uint16_t bits;
  std::memcpy(&bits, at, 2);
  const int mantissa_bits = dtype == DType::kBFloat16 ? 7 : 10;
  const int exponent_max = (1 << (15 - mantissa_bits)) - 1;
  const int exponent = (bits >> mantissa_bits) & exponent_max;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const Exact sign = (bits >> 15) != 0 ? -1 : 1;
  if (exponent == exponent_max) return mantissa == 0 ? sign * kInfinity : kNan;
  const int whole = exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits);
  const int shift = (exponent == 0 ? 1 : exponent) - exponent_max / 2 - mantissa_bits;
  return sign * std::ldexp(Exact(whole), shift);
}

// Stores a value near `value` that the dtype can hold (truncated, normal range).
inline void encode(Exact value, unsigned char* at, DType dtype) {
  const double wide = static_cast<double>(value);
  const float narrow = static_cast<float>(value);
  if (dtype == DType::kFloat64) return void(std::memcpy(at, &wide, 8));
  if (dtype == DType::kFloat32) return void(std::memcpy(at, &narrow, 4));
  const int mantissa_bits = dtype == DType::kBFloat16 ? 7 : 10;
  const int bias = dtype == DType::kBFloat16 ? 127 : 15;
  unsigned bits;
  if (std::isnan(value) || std::isinf(value)) {
    bits = static_cast<unsigned>(2 * bias + 1) << mantissa_bits | (std::isnan(value) ? 1u : 0u);
  } else if (std::fabs(value) < std::ldexp(Exact(1), 1 - bias)) {
    bits = 0;
  } else {
    const int exponent = std::ilogb(value);
    const Exact units = std::trunc(std::ldexp(std::fabs(value), mantissa_bits - exponent));
    bits = (static_cast<unsigned>(exponent + bias - 1) << mantissa_bits) +
           static_cast<unsigned>(units);
  }
  const std::uint16_t stored =
      static_cast<std::uint16_t>(bits | (std::signbit(value) ? 0x8000u : 0u));
  std::memcpy(at, &stored, 2);
}

// Half a unit in the last place of 1.
inline Exact rounding(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 0x1p-53L;
    case DType::kFloat32:
      return 0x1p-24L;
    case DType::kBFloat16:
      return 0x1p-8L;
    case DType::kFloat16:
      return 0x1p-11L;
  }
  return 0;
}

// Rows at `offset` elements into a buffer that is otherwise full of 0xFF (NaN).
struct Buffer {
  std::vector<unsigned char> bytes;
  DType dtype = DType::kFloat32;
  std::int64_t offset = 0;
  std::int64_t row_stride = 0;

  void allocate(DType type, std::int64_t rows, std::int64_t actions, std::int64_t stride,
                std::int64_t start) {
    dtype = type;
    offset = start;
    row_stride = stride;
    const std::int64_t count = start + (rows - 1) * stride + actions;
    bytes.assign(static_cast<std::size_t>(count * element_bytes(type)), 0xFF);
  }
  unsigned char* at(std::int64_t row, std::int64_t action) {
    return bytes.data() + (offset + row * row_stride + action) * element_bytes(dtype);
  }
  Matrix matrix() { return {at(0, 0), dtype, row_stride}; }
};

enum class MaskMode { kNone, kShared, kPerRow };

struct Problem {
  LossKind kind = LossKind::kKl;
  std::int64_t batch = 3;
  std::int64_t actions = 18;
  DType student_dtype = DType::kFloat32;
  DType teacher_dtype = DType::kFloat32;
  double temperature = 1.0;
  double student_temperature = 1.0;
  double beta = 0.5;
  double scale = 1.0;
  double spread = 2.0;  // standard deviation of the logits
  MaskMode mask = MaskMode::kNone;
  bool weighted = false;
  bool per_row = false;
  bool with_grad = true;
  std::int64_t offset = 0;        // elements by which student and gradient are off alignment
  std::int64_t extra_stride = 0;  // elements between rows
  bool expanded_teacher = false;  // one teacher row for all
};

struct Row {
  Exact loss = 0;
  Exact loss_error = 0;  // what one rounding of every intermediate may do
  std::vector<Exact> grad;
  std::vector<Exact> grad_error;
};

// Softmax of the unmasked logits: p, log p and the exponents that they came from.
struct Softmax {
  std::vector<Exact> p, log_p, z;
  bool any = false;
  bool nan = false;

  Softmax(const std::vector<Exact>& x, Exact temperature)
      : p(x.size(), 0), log_p(x.size(), -kInfinity), z(x.size(), 0) {
    Exact top = -kInfinity;
    for (Exact v : x) {
      nan = nan || std::isnan(v);
      top = v > top ? v : top;
    }
    any = top > -kInfinity;
    if (!any || nan) return;
    Exact sum = 0;
    for (Exact v : x) sum += std::exp((v - top) / temperature);
    for (std::size_t j = 0; j < x.size(); ++j) {
      if (x[j] == -kInfinity) continue;
      z[j] = (x[j] - top) / temperature;
      log_p[j] = z[j] - std::log(sum);
      p[j] = std::exp(log_p[j]);
    }
  }
};

inline Row nan_row(std::size_t actions) {
  return {kNan, 0, std::vector<Exact>(actions, kNan), std::vector<Exact>(actions, 0)};
}
inline Row zero_row(std::size_t actions) {
  return {0, 0, std::vector<Exact>(actions, 0), std::vector<Exact>(actions, 0)};
}

inline Row mse_row(const std::vector<Exact>& s, const std::vector<Exact>& t, Exact temperature) {
  Row row = zero_row(s.size());
  for (std::size_t j = 0; j < s.size(); ++j) {
    if (s[j] == -kInfinity || t[j] == -kInfinity) continue;
    row.loss += (s[j] - t[j]) * (s[j] - t[j]);
    row.grad[j] = 2 * (s[j] - t[j]) / temperature;
    row.grad_error[j] = std::fabs(row.grad[j]);
  }
  row.loss_error = 2 * row.loss;
  return row;
}

// Relative error of exp(z) when z carries one rounding.
inline Exact exp_error(Exact z) { return 2 + std::fabs(z); }

inline Row oracle_row(const Problem& problem, const std::vector<Exact>& s,
                      const std::vector<Exact>& t) {
  const std::size_t actions = s.size();
  if (problem.kind == LossKind::kMse) return mse_row(s, t, problem.student_temperature);
  const Softmax q(s, problem.student_temperature);
  Softmax p(t, problem.temperature);
  if (q.nan || p.nan) return nan_row(actions);
  if (!q.any || !p.any) return zero_row(actions);
  if (problem.kind == LossKind::kNll) {
    std::size_t best = 0;
    for (std::size_t j = 1; j < actions; ++j) best = t[j] > t[best] ? j : best;
    for (std::size_t j = 0; j < actions; ++j) {
      p.z[j] = 0;
      p.p[j] = j == best ? 1 : 0;
      p.log_p[j] = j == best ? Exact(0) : -kInfinity;
    }
  }
  Row row = zero_row(actions);
  const auto add = [&](Exact share, Exact log_a, Exact log_b, Exact exponent) {
    if (share <= 0) return;
    row.loss += share * (log_a - log_b);
    row.loss_error += share * (std::fabs(log_a) + std::fabs(log_b) +
                               exp_error(exponent) * std::fabs(log_a - log_b) + 1);
  };
  const Exact beta = problem.beta;
  std::vector<Exact> q_over_m(actions, 0);
  Exact mean = 0;
  for (std::size_t j = 0; j < actions; ++j) {
    if (problem.kind == LossKind::kReverseKl) {
      add(q.p[j], q.log_p[j], p.log_p[j], q.z[j]);
    } else if (problem.kind == LossKind::kJsd) {
      const Exact log_m = std::log(beta * p.p[j] + (1 - beta) * q.p[j]);
      add(beta * p.p[j], p.log_p[j], log_m, p.z[j]);
      add((1 - beta) * q.p[j], q.log_p[j], log_m, q.z[j]);
      q_over_m[j] = q.p[j] > 0 ? q.log_p[j] - log_m : 0;
      mean += q.p[j] * q_over_m[j];
    } else {
      add(p.p[j], p.log_p[j], q.log_p[j], p.z[j]);
    }
  }
  for (std::size_t j = 0; j < actions; ++j) {
    if (s[j] == -kInfinity) continue;
    Exact error;
    if (problem.kind == LossKind::kReverseKl) {
      if (std::isinf(row.loss)) continue;  // no direction leads out: 0
      const Exact ratio = q.p[j] > 0 ? q.log_p[j] - p.log_p[j] : 0;
      row.grad[j] = q.p[j] * (ratio - row.loss);
      error = q.p[j] * (std::fabs(q.z[j]) + std::fabs(p.z[j]) + row.loss_error +
                        exp_error(q.z[j]) * (1 + std::fabs(ratio) + row.loss));
    } else if (problem.kind == LossKind::kJsd) {
      row.grad[j] = (1 - beta) * q.p[j] * (q_over_m[j] - mean);
      error = q.p[j] * exp_error(q.z[j]) * (2 + std::fabs(p.z[j]) + std::fabs(q_over_m[j] - mean));
    } else {
      row.grad[j] = q.p[j] - p.p[j];
      error = q.p[j] * exp_error(q.z[j]) + p.p[j] * exp_error(p.z[j]);
    }
    row.grad[j] /= problem.student_temperature;
    row.grad_error[j] = error / problem.student_temperature;
  }
  return row;
}

}  // namespace fastdistill::testing
