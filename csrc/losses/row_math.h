// SPDX-License-Identifier: MIT
// The formulas of the losses for one row, once, for CPU vectors and CUDA threads alike.
//
// Math supplies V (a float, a double or a SIMD vector of rows or columns), broadcast, multiply_add,
// fused_multiply_add (which rounds once), at_least (a maximum that keeps a NaN in its first
// argument), exp2 and log2. Masks are whatever V's comparisons give, so `mask ? a : b` selects per
// lane. Exponents and logarithms are to the base 2, because the hardware's are; ln 2 enters once
// per row or element at the end.
//
// With z = (x - max x) / temperature * log2(e), e = 2^z, and the sums over a row's actions:
//   p = e_t / sum_t,  log2 p = z_t - log2 sum_t   (teacher; q and s likewise for the student)
// A masked action (logit -inf) has z = -inf and e = 0. The cross sum leaves out the terms of e = 0,
// and a z of -inf that enters it with a probability above 0 makes it +inf by itself. The mixture
// needs differences of z that are numbers and gets them hugely negative instead.
#pragma once

#include "common/host_device.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

inline constexpr double kLn2 = 0.69314718055994530942;
inline constexpr double kLog2E = 1.44269504088896340736;
inline constexpr double kLog2ELow = 2.0355273740931033e-17;  // log2(e) - kLog2E

// One row's temperature as the factor log2(e) / temperature, split so that the product with the
// shifted logit is rounded once: a rounded factor alone would scale every exponent of the row
// alike. Both parts are above 0, so that a logit of -inf makes both products -inf, and never NaN.
template <class Real>
struct Factor {
  Real high;
  Real low;

  explicit Factor(double temperature) {
    const double quotient = kLog2E / temperature;
    const double rest = (__builtin_fma(-quotient, temperature, kLog2E) + kLog2ELow) / temperature;
    high = static_cast<Real>(quotient);
    const auto below = [&] { return (quotient - static_cast<double>(high)) + rest; };
    constexpr Real ulp = sizeof(Real) == 8 ? Real(0x1p-52) : Real(0x1p-23);
    if (below() <= 0.0) high -= high * ulp;
    low = static_cast<Real>(below());
  }
};

template <class Math>
struct RowMath {
  using V = typename Math::V;
  using Real = typename Math::Real;

  static FASTDISTILL_HD V constant(double value) {
    return Math::broadcast(static_cast<Real>(value));
  }
  static FASTDISTILL_HD V minus_infinity() { return Math::broadcast(-Math::infinity()); }

  static FASTDISTILL_HD V at_least_zero(V value) { return Math::at_least(value, constant(0)); }

  // z of the comment above; NaN stays NaN.
  static FASTDISTILL_HD V shifted(V logit, V shift, Factor<Real> factor) {
    const V distance = logit - shift;
    return Math::fused_multiply_add(distance, constant(factor.high), distance * factor.low);
  }

  static FASTDISTILL_HD V finite(V z) { return Math::at_least(z, constant(-1e38)); }

  // A row without any unmasked action has no maximum; shifting by 0 keeps all its e at 0.
  static FASTDISTILL_HD V shift_of(V row_max) {
    return row_max == minus_infinity() ? constant(0) : row_max;
  }

  // sum_j e_a (z_a - z_b) is the cross sum of KL(a || b) in units of sum_a. Compared for equality,
  // so that a NaN stays.
  static FASTDISTILL_HD V add_cross_term(V cross, V e_a, V z_a, V z_b) {
    const V difference = e_a == constant(0) ? constant(0) : z_a - z_b;
    return Math::multiply_add(e_a, difference, cross);
  }

  static FASTDISTILL_HD V kl_loss(V cross, V sum_a, V sum_b) {
    const V bits = cross / sum_a - Math::log2(sum_a / sum_b);
    return at_least_zero(constant(kLn2) * bits);
  }

  // d KL(p || q) / d s_j * student_temperature = q_j - p_j
  static FASTDISTILL_HD V kl_grad(V e_s, V e_t, V inverse_sum_s, V inverse_sum_t) {
    return e_s * inverse_sum_s - e_t * inverse_sum_t;
  }

  // d KL(q || p) / d s_j * student_temperature = q_j (log q_j - log p_j - KL), from
  // difference = z_s - z_t. Where the student covers an action that the teacher rules out the loss
  // is +inf and has no gradient: 0.
  static FASTDISTILL_HD V reverse_kl_grad(V e_s, V difference, V inverse_sum_s, V mean) {
    const V grad = constant(kLn2) * e_s * inverse_sum_s * (difference - mean);
    const V live = e_s == constant(0) ? constant(0) : grad;
    return mean == constant(Math::infinity()) ? constant(0) : live;
  }

  // beta and 1 - beta, each rounded on its own.
  struct Shares {
    V teacher;
    V student;
  };

  // m = beta p + (1 - beta) q. The larger of p and q is factored out, so neither may underflow.
  struct Mixture {
    V log2_m_over_q;
    V log2_m_over_p;
  };
  static FASTDISTILL_HD Mixture mixture(V log2_p, V log2_q, Shares share) {
    const V ratio = log2_p - log2_q;
    const V smaller = Math::exp2(ratio < constant(0) ? ratio : -ratio);
    const V p_larger = share.teacher + share.student * smaller;
    const V q_larger = share.student + share.teacher * smaller;
    const V rest = Math::log2(ratio > constant(0) ? p_larger : q_larger);
    return {at_least_zero(ratio) + rest, at_least_zero(-ratio) + rest};
  }

  static FASTDISTILL_HD V jsd_loss_term(V p, V q, Mixture log2_m, Shares share) {
    const V zero = constant(0);
    // Compared for equality, so that a NaN stays.
    const V teacher = p == zero ? zero : share.teacher * p * log2_m.log2_m_over_p;
    const V student = q == zero ? zero : share.student * q * log2_m.log2_m_over_q;
    return constant(-kLn2) * (teacher + student);
  }

  // d JSD / d s_j * student_temperature = (1 - beta) q_j (log(q_j / m_j) - sum_k q_k log(q_k /
  // m_k))
  static FASTDISTILL_HD V jsd_grad(V q, V log2_m_over_q, V mean_log2_m_over_q, Shares share) {
    const V grad = constant(kLn2) * share.student * q * (mean_log2_m_over_q - log2_m_over_q);
    return q == constant(0) ? constant(0) : grad;
  }

  // sum_j (s_j - t_j)^2; an action masked on either side has no difference.
  static FASTDISTILL_HD V mse_difference(V s, V t) {
    const V difference = t == minus_infinity() ? constant(0) : s - t;
    return s == minus_infinity() ? constant(0) : difference;
  }
};

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
