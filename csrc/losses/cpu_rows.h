// SPDX-License-Identifier: MIT
// The distillation losses over a block of vectors: either one row per lane (few actions) or one row
// spread over all lanes (many). Both layouts run the same passes; they differ in how a row's values
// are reduced and in whether the last vector is full.
#pragma once

#include <type_traits>

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
    ExactSum lanes{sum, error == error ? error : typename M::V{}};
    if constexpr (sizeof(typename M::Real) == sizeof(float)) {
      return horizontal_sum<Math<double>>(M::sum_of_halves(lanes.sum) +
                                          M::sum_of_halves(lanes.error));
    } else {
      lanes.template add_lanes<M::kLanes / 2>();
      return lanes.value()[0];
    }
  }

 private:
  // Leaves the sum over all lanes in each lane.
  template <int distance>
  FASTDISTILL_HD void add_lanes() {
    constexpr auto lanes = std::make_index_sequence<M::kLanes>();
    const typename M::V errors = error + lanes_down<distance>(error, lanes);
    error = typename M::V{};
    add(lanes_down<distance>(sum, lanes));
    error += errors;
    if constexpr (distance > 1) add_lanes<distance / 2>();
  }
};

template <class M>
struct PlainSum {
  typename M::V sum{};
  FASTDISTILL_HD void add(typename M::V value) { sum += value; }
  FASTDISTILL_HD typename M::V value() const { return sum; }
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
  // One row across lanes: what is fetched into the cache meanwhile. Elements from its logits to the
  // next row's, or 0, and where its gradient will be, or scratch.
  int64_t student_ahead = 0;
  int64_t teacher_ahead = 0;
  const Real* grad = nullptr;
};

// Sums over a row are kept in strips of kStripVectors, and within a strip in two chains, because an
// error grows with the length of a chain of additions. Strips are added in a RowSum.

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
  static FASTDISTILL_HD void fetch(const RowBlock<M>&, int64_t) {}
  static FASTDISTILL_HD V total(const RowSum& sum) { return sum.value(); }
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
  static FASTDISTILL_HD void fetch(const RowBlock<M>& rows, int64_t i) {
    __builtin_prefetch(rows.student + i + rows.student_ahead, 0, 2);
    __builtin_prefetch(rows.teacher + i + rows.teacher_ahead, 0, 2);
    __builtin_prefetch(rows.grad + i, 1);  // a store waits for its line, too
  }
  static FASTDISTILL_HD V total(const RowSum& sum) {
    return M::broadcast(static_cast<typename M::Real>(sum.value_of_lanes()));
  }
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

  // The gradient of reverse_kl at the best action is a sum over all the others, so that several
  // probabilities lost below 2^-126 would be missing from it together. There all exponentials of a
  // row are larger by 2^kBias; each is lost alone in its own gradient.
  static constexpr int kBias = kind == LossKind::kReverseKl && sizeof(Real) == 4 ? 24 : 0;

  // step(i, parts, count) adds `count` vectors from i on, one to each of a strip's two chains,
  // which finish(parts) takes. Two vectors at a time, because one alone would wait for its own
  // results.
  template <class Part, class Step, class Finish>
  static FASTDISTILL_HD void for_strips(int64_t elements, Step step, Finish finish) {
    for (int64_t strip = 0; strip < elements; strip += kStripElements) {
      Part parts[2]{};
      const int64_t end = strip + kStripElements < elements ? strip + kStripElements : elements;
      int64_t i = strip;
      for (; i + M::kLanes < end; i += 2 * M::kLanes) {
        step(i, parts, std::integral_constant<int, 2>{});
      }
      if (i < end) step(i, parts, std::integral_constant<int, 1>{});
      finish(parts);
    }
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
    for_strips<V>(
        rows.elements,
        [&](int64_t i, V(&parts)[2], auto count) __attribute__((always_inline)) {
          for_each<count()>([&](int k) {
            const V difference = difference_at(i + k * M::kLanes);
            parts[k] = M::multiply_add(difference, difference, parts[k]);
          });
        },
        [&](const V(&parts)[2]) { sum.add(parts[0] + parts[1]); });
    const V factor = weight * (settings.student_scale * Real(2));
    const Mask silent = weight == V{};
    emit([&](int64_t i) { return silent ? V{} : factor * difference_at(i); });
    return silent ? V{} : Layout::total(sum);
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
      const V mean = sums.cross / sums.s;
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
    for_strips<Sums>(
        rows.elements,
        [&](int64_t i, Sums(&parts)[2], auto count) __attribute__((always_inline)) {
          constexpr int n = count();
          V z[2 * n];  // the student's, then the teacher's
          V e[2 * n];
          for_each<n>([&](int k) {
            const int64_t at = i + k * M::kLanes;
            const V s = Layout::load(rows.student + at, rows.elements - at, -M::infinity());
            const V t = Layout::load(rows.teacher + at, rows.elements - at, -M::infinity());
            Layout::fetch(rows, at);
            z[k] = F::shifted(s, shift_s, settings.student_factor);
            if constexpr (kind == LossKind::kNll) {
              // All of the teacher's probability on its first best action; a NaN beside it is not
              // lost.
              const Mask target =
                  Layout::first((t == rows.teacher_max) & (t != F::minus_infinity()), found);
              found |= Layout::any(target);
              z[n + k] = V{};
              e[n + k] = target ? F::constant(1) : (t == t ? V{} : t);
            } else {
              z[n + k] = F::shifted(t, shift_t, settings.teacher_factor);
            }
          });
          if constexpr (kind == LossKind::kNll) {
            for_each<n>([&](int k) { e[k] = M::exp2(z[k]); });
          } else {
            M::template exp2<kBias>(z, e);
          }
          for_each<n>([&](int k) {
            const int64_t at = i + k * M::kLanes;
            Sums& part = parts[k];
            part.s += e[k];
            part.t += e[n + k];
            if constexpr (kBias == 0) {
              M::store(rows.first + at, e[k]);
            } else {
              const V least = F::constant(0x1p-126 * (1 << kBias));
              M::store(rows.first + at, e[k] < least ? V{} : e[k]);
            }
            if constexpr (kind == LossKind::kKl || kind == LossKind::kNll) {
              part.cross = F::add_cross_term(part.cross, e[n + k], z[n + k], z[k]);
              M::store(rows.second + at, e[n + k]);
            } else if constexpr (kind == LossKind::kReverseKl) {
              part.cross = F::add_cross_term(part.cross, e[k], z[k], z[n + k]);
              M::store(rows.second + at, z[k] - z[n + k]);
            } else {
              M::store(rows.second + at, e[n + k]);
              M::store(rows.third + at, F::finite(z[k]));
              M::store(rows.fourth + at, F::finite(z[n + k]));
            }
          });
        },
        [&](const Sums(&parts)[2]) {
          sum_s.add(parts[0].s + parts[1].s);
          sum_t.add(parts[0].t + parts[1].t);
          cross.add(parts[0].cross + parts[1].cross);
        });
    return {Layout::total(sum_s), Layout::total(sum_t), Layout::total(cross)};
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
    struct Terms {
      V loss;
      V mean;
    };
    RowSum loss;
    RowSum sum_mean;
    for_strips<Terms>(
        rows.elements,
        [&](int64_t i, Terms(&parts)[2], auto count) __attribute__((always_inline)) {
          for_each<count()>([&](int k) {
            const int64_t at = i + k * M::kLanes;
            const V q = M::load(rows.first + at) * inverse_s;
            const V p = M::load(rows.second + at) * inverse_t;
            const auto log2_m = F::mixture(M::load(rows.fourth + at) - log2_sum_t,
                                           M::load(rows.third + at) - log2_sum_s, share);
            parts[k].loss += F::jsd_loss_term(p, q, log2_m, share);
            parts[k].mean += q == V{} ? V{} : q * log2_m.log2_m_over_q;
            M::store(rows.third + at, log2_m.log2_m_over_q);
          });
        },
        [&](const Terms(&parts)[2]) {
          loss.add(parts[0].loss + parts[1].loss);
          sum_mean.add(parts[0].mean + parts[1].mean);
        });
    const V mean = Layout::total(sum_mean);
    emit([&](int64_t i) {
      const V q = M::load(rows.first + i) * inverse_s;
      const V grad = factor * F::jsd_grad(q, M::load(rows.third + i), mean, share);
      return silent ? V{} : grad;
    });
    return F::at_least_zero(Layout::total(loss));
  }
};

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
