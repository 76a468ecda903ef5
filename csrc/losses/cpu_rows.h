// SPDX-License-Identifier: MIT
// The distillation losses over a block of vectors: either one row per lane (few actions) or one row
// spread over all lanes (many). Both layouts run the same passes; they differ in how a row's values
// are reduced and in whether the last vector is full.
#pragma once

#include "losses/loss_args.h"
#include "losses/row_math.h"
#include "losses/simd.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

// The sum of many vectors with the rounding errors of its additions, exact to about twice the
// precision (Neumaier's summation without its comparison, by Knuth's two-sum).
template <class M>
struct ExactSum {
  typename M::V sum{};
  typename M::V error{};

  FASTDISTILL_HD void add(typename M::V value) {
    const typename M::V total = sum + value;
    const typename M::V added = total - sum;
    error += (sum - (total - added)) + (value - added);
    sum = total;
  }
  FASTDISTILL_HD typename M::V value() const {
    // inf - inf in the error must not turn an infinite sum into NaN.
    return error == error ? sum + error : sum;
  }
  FASTDISTILL_HD double value_of_lanes() const {
    double result = 0.0;
    for (int i = 0; i < M::kLanes; ++i) {
      result += static_cast<double>(sum[i]);
      if (error[i] == error[i]) result += static_cast<double>(error[i]);
    }
    return result;
  }
};

template <class M>
struct PlainSum {
  typename M::V sum{};
  FASTDISTILL_HD void add(typename M::V value) { sum += value; }
  FASTDISTILL_HD typename M::V value() const { return sum; }
};

// Sums over a row are kept in strips of kStripVectors, because an error grows with the length of a
// chain of additions. Strips are added in a RowSum.

// Lane i is row i, vector j is action j: a reduction over actions is vertical and done already.
template <class M, class Sum>
struct RowPerLane {
  static constexpr int64_t kStripVectors = 6;
  using RowSum = Sum;
  using V = typename M::V;
  using Mask = typename M::Mask;
  static FASTDISTILL_HD V load(const typename M::Real* p, int64_t, typename M::Real) {
    return M::load(p);
  }
  static FASTDISTILL_HD void store(typename M::Real* p, int64_t, V v) { M::store(p, v); }
  static FASTDISTILL_HD void fetch(const typename M::Real*, int64_t) {}
  static FASTDISTILL_HD V sum(V v) { return v; }
  static FASTDISTILL_HD Mask first(Mask hit, Mask found) { return hit & ~found; }
  static FASTDISTILL_HD Mask any(Mask mask) { return mask; }
};

// One row: vector j holds the actions j * lanes ..., and the last vector may be partly empty.
template <class M>
struct RowAcrossLanes {
  static constexpr int64_t kStripVectors = 8;
  using RowSum = ExactSum<M>;
  using V = typename M::V;
  using Mask = typename M::Mask;
  static FASTDISTILL_HD V load(const typename M::Real* p, int64_t left, typename M::Real fill) {
    return left >= M::kLanes ? M::load(p) : M::load_first(p, left, fill);
  }
  static FASTDISTILL_HD void store(typename M::Real* p, int64_t left, V v) {
    left >= M::kLanes ? M::store(p, v) : M::store_first(p, left, v);
  }
  static FASTDISTILL_HD void fetch(const typename M::Real* p, int64_t ahead) {
    __builtin_prefetch(p + ahead, 0, 2);
  }
  static FASTDISTILL_HD V sum(V v) { return M::broadcast(horizontal_sum<M>(v)); }
  static FASTDISTILL_HD Mask first(Mask hit, Mask found) {
    Mask first{};
    if (!M::any(hit)) return first;
    for (int i = 0; i < M::kLanes; ++i) {
      if (found[i] != 0) break;
      if (hit[i] == 0) continue;
      first[i] = -1;
      break;
    }
    return first;
  }
  static FASTDISTILL_HD Mask any(Mask mask) { return M::any(mask) ? ~Mask{} : Mask{}; }
};

template <class M>
struct RowBlock {
  using Real = typename M::Real;
  using V = typename M::V;
  const Real* student;  // logits, masked actions -inf
  const Real* teacher;
  V student_max;  // of each row, in all lanes that belong to it
  V teacher_max;
  int64_t elements;  // lanes * actions, or the actions of the one row
  // Scratch of `elements` each, rounded up to whole vectors. What they hold depends on the kind.
  Real* first;
  Real* second;
  Real* third;
  Real* fourth;
  // Elements from this row's logits to the next row's, which are fetched meanwhile: no hardware
  // follows a row's three passes over memory to the row after it. 0 for none.
  int64_t student_ahead = 0;
  int64_t teacher_ahead = 0;
};

template <class M>
struct RowSettings {
  using Real = typename M::Real;
  Factor<Real> student_factor;
  Factor<Real> teacher_factor;
  Real teacher_share;  // of the mixture: beta, and 1 - beta
  Real student_share;
  Real student_scale;  // reduction scale / student_temperature, on the gradient

  explicit RowSettings(const DistillArgs& args)
      : student_factor(args.student_temperature),
        teacher_factor(args.temperature),
        teacher_share(static_cast<Real>(args.beta)),
        student_share(static_cast<Real>(1.0 - args.beta)),
        student_scale(static_cast<Real>(args.scale / args.student_temperature)) {}
};

template <class M, LossKind kind, class Layout>
struct RowKernel {
  using V = typename M::V;
  using Mask = typename M::Mask;
  using Real = typename M::Real;
  using F = RowMath<M>;
  using RowSum = typename Layout::RowSum;

  // Row losses without weight. Hands `emit` a function that gives weight * scale times the gradient
  // of the vector of elements at an offset; emit may call it in any order, more than once, or
  // never.
  template <class Emit>
  static FASTDISTILL_HD V run(const RowBlock<M>& rows, const RowSettings<M>& settings, V weight,
                              Emit emit) {
    if constexpr (kind == LossKind::kMse) {
      return squared_errors(rows, settings, weight, emit);
    } else {
      return divergence(rows, settings, weight, emit);
    }
  }

 private:
  static constexpr int64_t kStripElements = Layout::kStripVectors * M::kLanes;

  static FASTDISTILL_HD int64_t strip_end(int64_t strip, int64_t elements) {
    const int64_t end = strip + kStripElements;
    return end < elements ? end : elements;
  }

  template <class Emit>
  static FASTDISTILL_HD V squared_errors(const RowBlock<M>& rows, const RowSettings<M>& settings,
                                         V weight, Emit emit) {
    const auto difference_at = [&](int64_t i) {
      const int64_t left = rows.elements - i;
      return F::mse_difference(Layout::load(rows.student + i, left, Real(0)),
                               Layout::load(rows.teacher + i, left, Real(0)));
    };
    RowSum sum;
    for (int64_t strip = 0; strip < rows.elements; strip += kStripElements) {
      V part{};
      const int64_t end = strip_end(strip, rows.elements);
      for (int64_t i = strip; i < end; i += M::kLanes) {
        const V difference = difference_at(i);
        part = M::multiply_add(difference, difference, part);
      }
      sum.add(part);
    }
    const V factor = weight * (settings.student_scale * Real(2));
    const Mask silent = weight == V{};
    emit([&](int64_t i) { return silent ? V{} : factor * difference_at(i); });
    return silent ? V{} : Layout::sum(sum.value());
  }

  template <class Emit>
  static FASTDISTILL_HD V divergence(const RowBlock<M>& rows, const RowSettings<M>& settings,
                                     V weight, Emit emit) {
    const Sums sums = exponentials(rows, settings);
    // A row is silent when nothing in it is unmasked or it weighs nothing; NaN compares unequal and
    // stays loud.
    const Mask silent = (sums.s == V{}) | (sums.t == V{}) | (weight == V{});
    const V factor = weight * settings.student_scale;
    V loss;
    if constexpr (kind == LossKind::kJsd) {
      loss = mixture_terms(rows, settings, sums, factor, silent, emit);
    } else if constexpr (kind == LossKind::kReverseKl) {
      loss = F::kl_loss(sums.cross, sums.s, sums.t);
      const V inverse_s = factor / sums.s;
      const V mean = F::mean_cross(sums.cross, sums.s);
      emit([&](int64_t i) {
        const V grad =
            F::reverse_kl_grad(M::load(rows.first + i), M::load(rows.second + i), inverse_s, mean);
        return silent ? V{} : grad;
      });
    } else {
      loss = F::kl_loss(sums.cross, sums.t, sums.s);
      // Seldom, and then cheaper to mend than to select in each vector of every gradient.
      const Mask infinite = loss == F::constant(M::infinity());
      if (M::any(silent | infinite)) clear_still(rows, silent);
      const V inverse_s = silent ? V{} : factor / sums.s;
      const V inverse_t = silent ? V{} : factor / sums.t;
      emit([&](int64_t i) {
        return F::kl_grad(M::load(rows.first + i), M::load(rows.second + i), inverse_s, inverse_t);
      });
    }
    return silent ? V{} : loss;
  }

  struct Sums {
    V s;
    V t;
    V cross;
  };

  static FASTDISTILL_HD Sums exponentials(const RowBlock<M>& rows, const RowSettings<M>& settings) {
    const V shift_s = F::shift_of(rows.student_max);
    const V shift_t = F::shift_of(rows.teacher_max);
    RowSum sum_s;
    RowSum sum_t;
    RowSum cross;
    Mask found{};
    for (int64_t strip = 0; strip < rows.elements; strip += kStripElements) {
      Sums part{};
      const int64_t end = strip_end(strip, rows.elements);
      for (int64_t i = strip; i < end; i += M::kLanes) {
        const V s = Layout::load(rows.student + i, rows.elements - i, -M::infinity());
        const V t = Layout::load(rows.teacher + i, rows.elements - i, -M::infinity());
        Layout::fetch(rows.student + i, rows.student_ahead);
        Layout::fetch(rows.teacher + i, rows.teacher_ahead);
        const V z_s = F::shifted(s, shift_s, settings.student_factor);
        const V e_s = M::exp2(z_s);
        V z_t;
        V e_t;
        if constexpr (kind == LossKind::kNll) {
          // All of the teacher's probability on its first best action; a NaN beside it is not lost.
          const Mask target =
              Layout::first((t == rows.teacher_max) & (t != F::minus_infinity()), found);
          found |= Layout::any(target);
          z_t = V{};
          e_t = target ? F::constant(1) : (t == t ? V{} : t);
        } else {
          z_t = F::shifted(t, shift_t, settings.teacher_factor);
          e_t = M::exp2(z_t);
        }
        part.s += e_s;
        part.t += e_t;
        if constexpr (kind == LossKind::kKl || kind == LossKind::kNll) {
          part.cross = F::add_cross_term(part.cross, e_t, z_t, z_s);
          M::store(rows.first + i, e_s);
          M::store(rows.second + i, e_t);
        } else if constexpr (kind == LossKind::kReverseKl) {
          part.cross = F::add_cross_term(part.cross, e_s, z_s, z_t);
          M::store(rows.first + i, e_s);
          M::store(rows.second + i, z_s - z_t);
        } else {
          M::store(rows.first + i, e_s);
          M::store(rows.second + i, e_t);
          M::store(rows.third + i, z_s);
          M::store(rows.fourth + i, z_t);
        }
      }
      sum_s.add(part.s);
      sum_t.add(part.t);
      cross.add(part.cross);
    }
    return {Layout::sum(sum_s.value()), Layout::sum(sum_t.value()), Layout::sum(cross.value())};
  }

  // Gives gradient 0 to silent rows, even of NaN, and to an action that the student rules out and
  // the teacher does not: its logit of -inf cannot move.
  static void clear_still(const RowBlock<M>& rows, Mask silent) {
    for (int64_t i = 0; i < rows.elements; i += M::kLanes) {
      const V s = Layout::load(rows.student + i, rows.elements - i, Real(0));
      const Mask still = silent | (s == F::minus_infinity());
      M::store(rows.first + i, still ? V{} : M::load(rows.first + i));
      M::store(rows.second + i, still ? V{} : M::load(rows.second + i));
    }
  }

  template <class Emit>
  static FASTDISTILL_HD V mixture_terms(const RowBlock<M>& rows, const RowSettings<M>& settings,
                                        const Sums& sums, V factor, Mask silent, Emit emit) {
    const typename F::Shares share{M::broadcast(settings.teacher_share),
                                   M::broadcast(settings.student_share)};
    const V inverse_s = F::constant(1) / sums.s;
    const V inverse_t = F::constant(1) / sums.t;
    const V log2_sum_s = M::log2(sums.s);
    const V log2_sum_t = M::log2(sums.t);
    RowSum loss;
    RowSum sum_mean;
    for (int64_t strip = 0; strip < rows.elements; strip += kStripElements) {
      V part_loss{};
      V part_mean{};
      const int64_t end = strip_end(strip, rows.elements);
      for (int64_t i = strip; i < end; i += M::kLanes) {
        const V q = M::load(rows.first + i) * inverse_s;
        const V p = M::load(rows.second + i) * inverse_t;
        const auto log2_m = F::mixture(M::load(rows.fourth + i) - log2_sum_t,
                                       M::load(rows.third + i) - log2_sum_s, share);
        part_loss += F::jsd_loss_term(p, q, log2_m, share);
        part_mean += q == V{} ? V{} : q * log2_m.log2_m_over_q;
        M::store(rows.third + i, log2_m.log2_m_over_q);
      }
      loss.add(part_loss);
      sum_mean.add(part_mean);
    }
    const V mean = Layout::sum(sum_mean.value());
    emit([&](int64_t i) {
      const V q = M::load(rows.first + i) * inverse_s;
      const V grad = factor * F::jsd_grad(q, M::load(rows.third + i), mean, share);
      return silent ? V{} : grad;
    });
    return F::at_least_zero(Layout::sum(loss.value()));
  }
};

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
