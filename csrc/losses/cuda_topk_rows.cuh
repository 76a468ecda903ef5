// SPDX-License-Identifier: MIT
// KL from the k largest of the teacher's values: a block per row. The row becomes buckets, the k
// known actions and the rest, to which RowLoss applies; the bucket's gradient is then shared among
// the actions of the tail.
//
// Shared memory holds a bit per action, set for the k; a row that is too long is taken in segments.
#pragma once

#include "losses/cuda_row_loss.cuh"
#include "losses/topk_mass.h"

namespace fastdistill::cuda {

inline constexpr int kTopkThreads = 256;
inline constexpr int kWordBits = 32;

// The k known actions and the rest as a row of k + 1 for RowLoss. Nothing is kept between passes.
template <class Real>
struct BucketCells {
  const TopkArgs& args;
  const void* student;
  const void* teacher;
  const std::uint8_t* mask;
  const std::int64_t* indices;
  void* grad;
  int rank;
  int threads;
  Real shift;           // of the student's logits
  Pair<Real> rest;      // the bucket's logits, shifted
  Real rest_slope = 0;  // its gradient, in the thread that owns it

  FASTDISTILL_DEVICE std::int64_t count() const { return args.k + (args.tail ? 1 : 0); }
  FASTDISTILL_DEVICE Pair<Real> logits(std::int64_t i) const {
    if (i == args.k) return rest;
    const std::int64_t action = indices[i];
    if (mask != nullptr && mask[action] == 0) {
      return {-DeviceMath<Real>::infinity(), -DeviceMath<Real>::infinity()};
    }
    return {load_one<Real>(student, args.base.student.dtype, action) - shift,
            load_one<Real>(teacher, args.base.teacher.dtype, i)};
  }

  template <class F>
  FASTDISTILL_DEVICE void scan(F f) {
    for (std::int64_t i = rank; i < count(); i += threads) f(i, logits(i));
  }
  template <class F>
  FASTDISTILL_DEVICE void finish(F f) {
    if (grad == nullptr) return;
    scan([&](std::int64_t i, Pair<Real> pair) {
      const Real slope = f(i, pair);
      if (i == args.k) {
        rest_slope = slope;
      } else {
        store(indices[i], slope);
      }
    });
  }
  FASTDISTILL_DEVICE void store(std::int64_t action, Real value) const {
    store_one(grad, args.base.student.dtype, action, value);
  }
};

template <class Real>
class TopkRow {
  using F = RowMath<DeviceMath<Real>>;

 public:
  FASTDISTILL_DEVICE TopkRow(const TopkArgs& args, const Settings<Real>& settings, BlockTeam& team,
                             unsigned* marks, std::int64_t segment, std::int64_t row)
      : args_(args),
        settings_(settings),
        team_(team),
        marks_(marks),
        segment_(segment),
        weight_(weight_of<Real>(args.base, row)),
        cells_{args,
               element(args.base.student.data, args.base.student.dtype,
                       row * args.base.student.row_stride),
               element(args.base.teacher.data, args.base.teacher.dtype,
                       row * args.base.teacher.row_stride),
               args.base.action_mask == nullptr
                   ? nullptr
                   : args.base.action_mask + row * args.base.mask_row_stride,
               args.indices + row * args.index_row_stride,
               args.base.grad == nullptr
                   ? nullptr
                   : const_cast<void*>(element(args.base.grad, args.base.student.dtype,
                                               row * args.base.grad_row_stride)),
               static_cast<int>(threadIdx.x),
               static_cast<int>(blockDim.x),
               Real(0),
               {}} {}

  // The row's loss times its weight. NaN, with a zero gradient, where the indices are out of range
  // or repeated or the values are no log-probabilities: to report that would mean to wait.
  FASTDISTILL_DEVICE Real run() {
    if (weight_ == Real(0)) return without_gradient(Real(0));
    if (has_bad_index()) return without_gradient(static_cast<Real>(NAN));
    find_tops();
    const bool bad_mass = args_.tail && weigh_rest();
    if (repeated_ || bad_mass) return without_gradient(static_cast<Real>(NAN));
    sum_tail();
    RowLoss<LossKind::kKl, Real, BlockTeam, BucketCells<Real>> loss(settings_, team_, cells_,
                                                                    weight_, true);
    const Real weighted = loss.run();
    spread();
    return weighted;
  }

 private:
  FASTDISTILL_DEVICE Real without_gradient(Real loss) {
    if (cells_.grad == nullptr) return loss;
    for (std::int64_t j = cells_.rank; j < args_.base.actions; j += cells_.threads) {
      cells_.store(j, Real(0));
    }
    return loss;
  }

  FASTDISTILL_DEVICE bool has_bad_index() {
    int bad = 0;
    for (std::int64_t i = cells_.rank; i < args_.k; i += cells_.threads) {
      bad |= cells_.indices[i] < 0 || cells_.indices[i] >= args_.base.actions;
    }
    team_.combine(Max{}, bad);
    return bad != 0;
  }

  // f(action) for this thread's actions outside the k. A short row's marks serve all passes.
  template <class Function>
  FASTDISTILL_DEVICE void for_tail(Function f) {
    const std::int64_t actions = args_.base.actions;
    for (std::int64_t first = 0; first < actions; first += segment_) {
      const std::int64_t end = actions - first < segment_ ? actions : first + segment_;
      if (first != marked_) mark(first, end);
      for (std::int64_t j = first + cells_.rank; j < end; j += cells_.threads) {
        const std::int64_t bit = j - first;
        if ((marks_[bit / kWordBits] >> (bit % kWordBits) & 1u) == 0) f(j);
      }
    }
  }

  FASTDISTILL_DEVICE void mark(std::int64_t first, std::int64_t end) {
    const std::int64_t words = (end - first + kWordBits - 1) / kWordBits;
    __syncthreads();  // the segment before has been read
    for (std::int64_t w = cells_.rank; w < words; w += cells_.threads) marks_[w] = 0;
    __syncthreads();
    for (std::int64_t i = cells_.rank; i < args_.k; i += cells_.threads) {
      const std::int64_t bit = cells_.indices[i] - first;
      if (bit < 0 || bit >= end - first) continue;
      const unsigned mine = 1u << (bit % kWordBits);
      repeated_ |= (atomicOr(marks_ + bit / kWordBits, mine) & mine) != 0;
    }
    __syncthreads();
    marked_ = first;
  }

  FASTDISTILL_DEVICE bool is_allowed(std::int64_t action) const {
    return cells_.mask == nullptr || cells_.mask[action] != 0;
  }
  FASTDISTILL_DEVICE Real logit(std::int64_t action) const {
    return is_allowed(action) ? load_one<Real>(cells_.student, args_.base.student.dtype, action)
                              : F::minus_infinity();
  }

  // The largest logits of the tail and of the row; whether the tail has an allowed action and
  // whether an action was named twice.
  FASTDISTILL_DEVICE void find_tops() {
    int open = 0;
    for_tail([&](std::int64_t j) {
      open |= is_allowed(j);
      top_ = Max{}(logit(j), top_);
    });
    int repeated = repeated_;
    team_.combine(Max{}, open, repeated);
    open_ = open != 0;
    repeated_ = repeated != 0;
    team_.combine(Max{}, top_);
    Real top = F::minus_infinity();
    for (std::int64_t i = cells_.rank; i < args_.k; i += cells_.threads) {
      top = Max{}(logit(cells_.indices[i]), top);
    }
    team_.combine(Max{}, top);
    cells_.shift = F::shift_of(args_.tail ? Max{}(top_, top) : top);
  }

  // The teacher's side of the bucket; returns whether its values cannot be log-probabilities.
  FASTDISTILL_DEVICE bool weigh_rest() {
    TopkMass part;
    part.left = 0;
    for (std::int64_t i = cells_.rank; i < args_.k; i += cells_.threads) {
      const double value =
          static_cast<double>(load_one<Real>(cells_.teacher, args_.base.teacher.dtype, i));
      part.take(::exp(value), value);
    }
    team_.combine(Sum{}, part.left, part.error, part.rounding);
    TopkMass mass = part;
    mass.left = 1;
    mass.take(-part.left, 0);
    cells_.rest.teacher = open_ ? static_cast<Real>(::log(mass.rest())) : F::minus_infinity();
    return mass.exceeds_one(args_.base.teacher.dtype);
  }

  FASTDISTILL_DEVICE Real exponential(std::int64_t action) const {
    return DeviceMath<Real>::exp2(
        F::shifted(logit(action), F::shift_of(top_), settings_.student_factor));
  }

  // The student's side of the bucket: the logarithm of its sum, by the tail's own maximum.
  FASTDISTILL_DEVICE void sum_tail() {
    if (!args_.tail) return;
    double sum = 0;
    for_tail([&](std::int64_t j) { sum += static_cast<double>(exponential(j)); });
    team_.combine(Sum{}, sum);
    tail_sum_ = static_cast<Real>(sum);
    cells_.rest.student =
        static_cast<Real>(static_cast<double>(top_) - static_cast<double>(cells_.shift) +
                          args_.base.student_temperature * ::log(sum));
  }

  FASTDISTILL_DEVICE void spread() {
    if (cells_.grad == nullptr) return;
    team_.combine(Sum{}, cells_.rest_slope);
    const bool still = !args_.tail || cells_.rest_slope == Real(0);
    const Real slope = still ? Real(0) : cells_.rest_slope / tail_sum_;
    for_tail([&](std::int64_t j) { cells_.store(j, still ? Real(0) : slope * exponential(j)); });
  }

  const TopkArgs& args_;
  const Settings<Real>& settings_;
  BlockTeam& team_;
  unsigned* marks_;
  const std::int64_t segment_;
  const Real weight_;
  BucketCells<Real> cells_;
  std::int64_t marked_ = -1;  // the first action of the segment that the marks are of
  bool repeated_ = false;
  bool open_ = false;
  Real top_ = F::minus_infinity();
  Real tail_sum_ = 0;
};

// `segment` actions have a bit each in shared memory.
template <class Real>
__global__ void __launch_bounds__(kTopkThreads)
    topk_rows(TopkArgs args, Settings<Real> settings, Workspace workspace, std::int64_t segment) {
  FASTDISTILL_DYNAMIC_SHARED(memory);
  FASTDISTILL_SHARED(Exchange, exchange);
  BlockTeam team(exchange);
  double lost = 0;
  for (std::int64_t row = blockIdx.x; row < args.base.batch; row += gridDim.x) {
    const Real weighted =
        TopkRow<Real>(args, settings, team, reinterpret_cast<unsigned*>(memory), segment, row)
            .run();
    if (threadIdx.x != 0) continue;
    store_row_loss(args.base, row, weighted, settings.loss_scale);
    lost += static_cast<double>(weighted);
  }
  if (args.base.loss != nullptr) {
    reduce_loss(team, lost, workspace, args.base.scale, args.base.loss, sizeof(Real) == 8);
  }
}

}  // namespace fastdistill::cuda
