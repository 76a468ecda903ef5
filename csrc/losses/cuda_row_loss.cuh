// SPDX-License-Identifier: MIT
// The loss and gradient of one row by a team of threads, in passes over the row's cells.
//
// Cells gives a thread its share of the row's logits, the same in each pass:
//   scan(f)    f(action, pair)
//   finish(f)  gradient = f(action, pair); called once, last, wanted or not
// What a pass needs of an earlier one but sums is computed again: kept as float32 it would take
// twice the room of 16-bit logits.
#pragma once

#include "losses/cuda_team.cuh"

namespace fastdistill::cuda {

template <class Real>
struct Settings {
  Factor<Real> student_factor;
  Factor<Real> teacher_factor;
  Real teacher_share;  // of the mixture: beta, and 1 - beta
  Real student_share;
  Real loss_scale;  // of the reduction
  Real grad_scale;  // the same / student_temperature

  explicit Settings(const DistillArgs& args)
      : student_factor(args.student_temperature),
        teacher_factor(args.temperature),
        teacher_share(static_cast<Real>(args.beta)),
        student_share(static_cast<Real>(1.0 - args.beta)),
        loss_scale(static_cast<Real>(args.scale)),
        grad_scale(static_cast<Real>(args.scale / args.student_temperature)) {}
};

template <LossKind kind, class Real, class Team, class Cells>
class RowLoss {
  using F = RowMath<DeviceMath<Real>>;
  static constexpr std::int64_t kNoAction = INT64_MAX;

 public:
  // Only those threads that are `asked` need to know the loss.
  FASTDISTILL_DEVICE RowLoss(const Settings<Real>& settings, Team& team, Cells& cells, Real weight,
                             bool asked)
      : settings_(settings), team_(team), cells_(cells), weight_(weight), asked_(asked) {}

  // The row's loss times its weight; the gradient carries every scale.
  FASTDISTILL_DEVICE Real run() {
    Real loss;
    if constexpr (kind == LossKind::kMse) {
      loss = squared_error();
    } else {
      loss = divergence();
    }
    return weight_ == Real(0) ? Real(0) : loss * weight_;
  }

 private:
  FASTDISTILL_DEVICE Real squared_error() {
    Real sum = 0;
    cells_.scan([&](std::int64_t, Pair<Real> logits) {
      const Real difference = F::mse_difference(logits.student, logits.teacher);
      sum = DeviceMath<Real>::multiply_add(difference, difference, sum);
    });
    team_.combine(Sum{}, sum);
    const Real factor = Real(2) * weight_ * settings_.grad_scale;
    cells_.finish([&](std::int64_t, Pair<Real> logits) {
      const Real difference = F::mse_difference(logits.student, logits.teacher);
      return weight_ == Real(0) ? Real(0) : factor * difference;
    });
    return sum;
  }

  FASTDISTILL_DEVICE Real divergence() {
    find_shifts();
    sum_exponentials<false>();
    // Infinite logits may have made a NaN, and so may NaN logits, which will again.
    if (cross_ != cross_) sum_exponentials<true>();
    // Nothing unmasked, or no weight: the row is silent. NaN compares unequal and stays loud.
    const bool is_silent = sum_s_ == Real(0) || sum_t_ == Real(0) || weight_ == Real(0);
    if (is_silent) {
      cells_.finish([](std::int64_t, Pair<Real>) { return Real(0); });
      return Real(0);
    }
    const Real factor = weight_ * settings_.grad_scale;
    if constexpr (kind == LossKind::kJsd) {
      return mixture_terms(factor);
    } else if constexpr (kind == LossKind::kReverseKl) {
      const Real inverse_s = factor / sum_s_;
      const Real mean = cross_ / sum_s_;
      finish([&](const Terms& now) {
        return F::reverse_kl_grad(now.e_s, now.z_s - now.z_t, inverse_s, mean);
      });
      return asked_ ? F::kl_loss(cross_, sum_s_, sum_t_) : Real(0);
    } else {
      const Real inverse_s = factor / sum_s_;
      const Real inverse_t = factor / sum_t_;
      const auto gradient = [&](const Terms& now) {
        return F::kl_grad(now.e_s, now.e_t, inverse_s, inverse_t);
      };
      if (cross_ < DeviceMath<Real>::infinity()) {
        finish(gradient);
      } else {
        // A logit of -inf cannot move, though the teacher wants it: its gradient would be -p.
        finish([&](const Terms& now) {
          return now.z_s == F::minus_infinity() ? Real(0) : gradient(now);
        });
      }
      return asked_ ? F::kl_loss(cross_, sum_t_, sum_s_) : Real(0);
    }
  }

  template <class Gradient>
  FASTDISTILL_DEVICE void finish(Gradient gradient) {
    cells_.finish(
        [&](std::int64_t action, Pair<Real> logits) { return gradient(terms(action, logits)); });
  }

  // Row maxima; for nll also the teacher's first best action.
  FASTDISTILL_DEVICE void find_shifts() {
    Real max_s = F::minus_infinity();
    Real max_t = F::minus_infinity();
    std::int64_t first = kNoAction;
    cells_.scan([&](std::int64_t action, Pair<Real> logits) {
      max_s = Max{}(logits.student, max_s);
      if (kind == LossKind::kNll && logits.teacher > max_t) first = action;
      max_t = Max{}(logits.teacher, max_t);
    });
    const Real thread_max_t = max_t;
    team_.combine(Max{}, max_s, max_t);
    if constexpr (kind == LossKind::kNll) {
      target_ = thread_max_t == max_t ? first : kNoAction;
      team_.combine(Min{}, target_);
    }
    shift_s_ = F::shift_of(max_s);
    shift_t_ = F::shift_of(max_t);
  }

  struct Terms {
    Real z_s;
    Real e_s;
    Real z_t;
    Real e_t;
  };

  FASTDISTILL_DEVICE Terms terms(std::int64_t action, Pair<Real> logits) const {
    Terms terms;
    terms.z_s = F::shifted(logits.student, shift_s_, settings_.student_factor);
    terms.e_s = DeviceMath<Real>::exp2(terms.z_s);
    if constexpr (kind == LossKind::kNll) {
      // All probability on the target; a NaN elsewhere in the teacher's row is not lost.
      const Real other = logits.teacher == logits.teacher ? Real(0) : logits.teacher;
      terms.z_t = Real(0);
      terms.e_t = action == target_ ? Real(1) : other;
    } else {
      terms.z_t = F::shifted(logits.teacher, shift_t_, settings_.teacher_factor);
      terms.e_t = DeviceMath<Real>::exp2(terms.z_t);
    }
    return terms;
  }

  // Without care a term of 0 times infinity makes the cross sum NaN, and a pair of logits takes two
  // instructions of fifteen less.
  template <bool with_care>
  FASTDISTILL_DEVICE void sum_exponentials() {
    sum_s_ = sum_t_ = cross_ = Real(0);
    const auto add_cross_term = [&](Real e_a, Real z_a, Real z_b) {
      cross_ = with_care ? F::add_cross_term(cross_, e_a, z_a, z_b)
                         : DeviceMath<Real>::multiply_add(e_a, z_a - z_b, cross_);
    };
    cells_.scan([&](std::int64_t action, Pair<Real> logits) {
      const Terms now = terms(action, logits);
      sum_s_ += now.e_s;
      sum_t_ += now.e_t;
      if constexpr (kind == LossKind::kReverseKl) {
        add_cross_term(now.e_s, now.z_s, now.z_t);
      } else if constexpr (kind != LossKind::kJsd) {
        add_cross_term(now.e_t, now.z_t, now.z_s);
      }
    });
    team_.combine(Sum{}, sum_s_, sum_t_, cross_);
  }

  FASTDISTILL_DEVICE Real mixture_terms(Real factor) {
    const typename F::Shares share{settings_.teacher_share, settings_.student_share};
    const Real inverse_s = Real(1) / sum_s_;
    const Real inverse_t = Real(1) / sum_t_;
    const Real log2_sum_s = DeviceMath<Real>::log2(sum_s_);
    const Real log2_sum_t = DeviceMath<Real>::log2(sum_t_);
    // The mixture needs differences of exponents, so these are numbers.
    const auto mixture = [&](const Terms& now) {
      return F::mixture(F::finite(now.z_t) - log2_sum_t, F::finite(now.z_s) - log2_sum_s, share);
    };
    Real loss = 0;
    Real mean = 0;
    cells_.scan([&](std::int64_t action, Pair<Real> logits) {
      const Terms now = terms(action, logits);
      const Real q = now.e_s * inverse_s;
      const auto log2_m = mixture(now);
      loss += F::jsd_loss_term(now.e_t * inverse_t, q, log2_m, share);
      mean += q == Real(0) ? Real(0) : q * log2_m.log2_m_over_q;
    });
    team_.combine(Sum{}, loss, mean);
    finish([&](const Terms& now) {
      return factor * F::jsd_grad(now.e_s * inverse_s, mixture(now).log2_m_over_q, mean, share);
    });
    return F::at_least_zero(loss);
  }

  const Settings<Real>& settings_;
  Team& team_;
  Cells& cells_;
  const Real weight_;
  const bool asked_;
  Real shift_s_ = 0;
  Real shift_t_ = 0;
  std::int64_t target_ = kNoAction;
  Real sum_s_ = 0;
  Real sum_t_ = 0;
  Real cross_ = 0;
};

template <class Real>
FASTDISTILL_DEVICE Real weight_of(const DistillArgs& args, std::int64_t row) {
  return args.weight == nullptr ? Real(1) : static_cast<const Real*>(args.weight)[row];
}

template <class Real>
FASTDISTILL_DEVICE void store_row_loss(const DistillArgs& args, std::int64_t row, Real weighted,
                                       Real scale) {
  if (args.row_loss != nullptr) static_cast<Real*>(args.row_loss)[row] = weighted * scale;
}

}  // namespace fastdistill::cuda
