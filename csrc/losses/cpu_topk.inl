// SPDX-License-Identifier: MIT
// KL from the k largest of the teacher's values, once per instruction set as cpu_kernels.inl. A row
// becomes buckets, the k known actions and the rest, to which the kernel of kl applies.
#include "losses/convert.h"
#include "losses/cpu_dispatch.h"
#include "losses/cpu_rows.h"
#include "losses/topk_mass.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

// The student's logits outside the k: the largest, and the sum of e^z with z counted from it.
template <class M>
struct Tail {
  typename M::Real top = -M::infinity();
  double sum = 0.0;
};

template <class M>
struct TopkRow {
  using Real = typename M::Real;
  using V = typename M::V;
  using F = RowMath<M>;
  using Layout = RowAcrossLanes<M>;

  const TopkArgs& args;
  const RowSettings<M>& settings;
  int64_t row;
  Real* logits;   // [actions], the student's; then e^z of the tail, then the gradient
  Real* buckets;  // kBucketArrays times the k known actions and the rest
  int64_t padded = wide_row_elements(args.k + 1);
  const int64_t* indices = args.indices + row * args.index_row_stride;
  const uint8_t* mask =
      args.base.action_mask ? args.base.action_mask + row * args.base.mask_row_stride : nullptr;
  Real weight = args.base.weight ? static_cast<const Real*>(args.base.weight)[row] : Real(1);

  bool is_allowed(int64_t action) const { return !mask || mask[action] != 0; }

  Real loss() {
    Real* const student = buckets;
    Real* const teacher = buckets + padded;
    widen_row(args.base.student, row, args.base.actions, logits);
    widen_row(args.base.teacher, row, args.k, teacher);
    teacher[args.k] = log_rest(teacher);
    for (int64_t j = 0; mask && j < args.base.actions; ++j) {
      if (mask[j] == 0) logits[j] = -M::infinity();
    }
    Real top = -M::infinity();
    for (int64_t i = 0; i < args.k; ++i) {
      student[i] = logits[indices[i]];
      logits[indices[i]] = -M::infinity();
      if (!is_allowed(indices[i])) teacher[i] = -M::infinity();
      top = larger(student[i], top);
    }
    const Tail<M> tail = args.tail ? exponentials() : Tail<M>{};
    top = larger(tail.top, top);
    if (top == -M::infinity()) top = Real(0);
    for (int64_t i = 0; i < args.k; ++i) student[i] -= top;
    student[args.k] = static_cast<Real>(static_cast<double>(tail.top) - static_cast<double>(top) +
                                        args.base.student_temperature * __builtin_log(tail.sum));
    return divergence(static_cast<Real>(tail.sum));
  }

 private:
  // The logarithm of the bucket's probability; -inf where the bucket holds no allowed action.
  Real log_rest(const Real* teacher) const {
    if (!args.tail) return -M::infinity();
    TopkMass mass;
    int64_t allowed = args.base.actions - args.k;
    for (int64_t i = 0; i < args.k; ++i) {
      const double value = static_cast<double>(teacher[i]);
      mass.take(__builtin_exp(value), value);
    }
    if (mass.exceeds_one(args.base.teacher.dtype) && weight != Real(0)) report();
    if (mask) {
      for (int64_t j = 0; j < args.base.actions; ++j) allowed -= mask[j] == 0;
      for (int64_t i = 0; i < args.k; ++i) allowed += mask[indices[i]] == 0;
    }
    return allowed > 0 ? static_cast<Real>(__builtin_log(mass.rest())) : -M::infinity();
  }

  void report() const {
    int64_t seen = __atomic_load_n(args.bad_mass_row, __ATOMIC_RELAXED);
    while (row < seen && !__atomic_compare_exchange_n(args.bad_mass_row, &seen, row, true,
                                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }

  // Of the tail, in the place of its logits, from its own maximum: far below the k its
  // probabilities would be 0, the logarithm of their sum is not.
  Tail<M> exponentials() {
    constexpr int64_t strip = 4 * M::kLanes;
    const int64_t actions = args.base.actions;
    V top = F::minus_infinity();
    for (int64_t i = 0; i < actions; i += M::kLanes) {
      top = larger(Layout::load(logits + i, actions - i, -M::infinity()), top);
    }
    Tail<M> tail;
    tail.top = horizontal_max<M>(top);
    const V shift = F::shift_of(M::broadcast(tail.top));
    ExactSum<M> sum;
    int64_t i = 0;
    for (; i + strip <= actions; i += strip) {
      V z[4];
      V e[4];
      for_each<4>([&](int k) {
        z[k] = F::shifted(M::load(logits + i + k * M::kLanes), shift, settings.student_factor);
      });
      M::exp2(z, e);
      for_each<4>([&](int k) { M::store(logits + i + k * M::kLanes, e[k]); });
      sum.add((e[0] + e[1]) + (e[2] + e[3]));
    }
    for (; i < actions; i += M::kLanes) {
      const V logit = Layout::load(logits + i, actions - i, -M::infinity());
      const V e = M::exp2(F::shifted(logit, shift, settings.student_factor));
      Layout::store(logits + i, actions - i, e);
      sum.add(e);
    }
    tail.sum = sum.value_of_lanes();
    return tail;
  }

  Real divergence(Real tail_sum) {
    Real* const teacher = buckets + padded;
    Real* const slopes = buckets + 4 * padded;
    const int64_t count = args.k + (args.tail ? 1 : 0);
    Real teacher_top = -M::infinity();
    for (int64_t i = 0; i < count; ++i) teacher_top = larger(teacher[i], teacher_top);
    // The student's logits are shifted already; z of the tail may lie above 0 by the logarithm of
    // its length.
    const RowBlock<M> block{buckets,
                            teacher,
                            V{},
                            M::broadcast(teacher_top),
                            count,
                            buckets + 2 * padded,
                            buckets + 3 * padded,
                            slopes,
                            slopes,
                            0,
                            0,
                            slopes};
    const auto emit = [&](auto gradient) __attribute__((always_inline)) {
      if (!args.base.grad) return;
      for (int64_t i = 0; i < count; i += M::kLanes) M::store(slopes + i, gradient(i));
      spread(slopes, tail_sum);
    };
    return weight *
           RowKernel<M, LossKind::kKl, Layout>::run(block, settings, M::broadcast(weight), emit)[0];
  }

  // From the buckets' gradients to the actions'. The bucket's is shared in proportion to e^z; a row
  // that weighs nothing may hold NaN.
  void spread(const Real* slopes, Real tail_sum) {
    const int64_t actions = args.base.actions;
    if (!args.tail || slopes[args.k] == Real(0)) {
      __builtin_memset(logits, 0, static_cast<size_t>(actions) * sizeof(Real));
    } else {
      const Real slope = slopes[args.k] / tail_sum;
      for (int64_t j = 0; j < actions; ++j) logits[j] *= slope;
    }
    for (int64_t i = 0; i < args.k; ++i) logits[indices[i]] = slopes[i];
    const DType dtype = args.base.student.dtype;
    void* grad = at(args.base.grad, dtype, row * args.base.grad_row_stride);
    if (grad != logits) narrow_row(logits, actions, dtype, grad);
  }
};

template <class M>
double topk_rows_of_type(const TopkArgs& args, int64_t begin, int64_t end, void* memory) {
  using Real = typename M::Real;
  const RowSettings<M> settings(args.base);
  const bool in_place =
      args.base.grad &&
      args.base.student.dtype == (sizeof(Real) == 8 ? DType::kFloat64 : DType::kFloat32);
  Real* const scratch = static_cast<Real*>(memory);
  Real* const buckets = scratch + wide_row_elements(args.base.actions);
  double sum = 0.0;
  for (int64_t row = begin; row < end; ++row) {
    Real* const logits =
        in_place ? static_cast<Real*>(args.base.grad) + row * args.base.grad_row_stride : scratch;
    const Real loss = TopkRow<M>{args, settings, row, logits, buckets}.loss();
    if (args.base.row_loss) static_cast<Real*>(args.base.row_loss)[row] = loss;
    sum += static_cast<double>(loss);
  }
  return sum;
}

double topk_rows(const TopkArgs& args, int64_t begin, int64_t end, void* memory) {
  return uses_float64(args.base) ? topk_rows_of_type<Math<double>>(args, begin, end, memory)
                                 : topk_rows_of_type<Math<float>>(args, begin, end, memory);
}

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
