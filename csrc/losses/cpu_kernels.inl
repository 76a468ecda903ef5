// SPDX-License-Identifier: MIT
// The CPU kernels of the distillation losses. This file is compiled once per instruction set, with
// FASTDISTILL_ISA naming the build; cpu_dispatch.cpp picks one at run time.
#include "losses/convert.h"
#include "losses/cpu_dispatch.h"
#include "losses/cpu_rows.h"
#include "losses/transpose.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

constexpr int64_t kMaxLaneActions = 64;
constexpr int64_t kCacheLineBytes = 64;
constexpr int64_t kMinFetchedElements = int64_t{1} << 18;  // fewer stay in the cache
// Longer rows would push each other out of the cache they are fetched to.
constexpr int64_t kMaxFetchedActions = 8192;

// Whether rows [row, row + count) lie in memory as one tile of the arithmetic type.
template <class Real>
FASTDISTILL_HD bool is_plain(const Matrix& matrix) {
  return matrix.dtype == (sizeof(Real) == 8 ? DType::kFloat64 : DType::kFloat32);
}

template <class Real>
void mask_row(const DistillArgs& args, int64_t row, Real* logits) {
  const uint8_t* mask = args.action_mask + row * args.mask_row_stride;
  for (int64_t j = 0; j < args.actions; ++j) {
    if (mask[j] == 0) logits[j] = -Math<Real>::infinity();
  }
}

template <class Real>
struct RowSpan {
  const Real* data;
  int64_t stride;
};

// Rows in the arithmetic type with masked actions at -inf: where they lie, if they are so already,
// else in `copy`.
template <class Real>
FASTDISTILL_HD RowSpan<Real> rows_of(const DistillArgs& args, const Matrix& matrix, int64_t row,
                                     int64_t count, Real* copy) {
  if (is_plain<Real>(matrix) && !args.action_mask) {
    return {static_cast<const Real*>(matrix.data) + row * matrix.row_stride, matrix.row_stride};
  }
  for (int64_t i = 0; i < count; ++i) {
    widen_row(matrix, row + i, args.actions, copy + i * args.actions);
    if (args.action_mask) mask_row(args, row + i, copy + i * args.actions);
  }
  return {copy, args.actions};
}

// Fetches rows of the arithmetic type into the cache; the lines of a gradient to be written,
// because a store waits for its line, too. Tiles that come from memory then take half the time.
template <class Real, bool for_writing>
FASTDISTILL_HD void fetch_rows(const Matrix& matrix, int64_t actions, int64_t row, int64_t count) {
  if (!is_plain<Real>(matrix)) return;
  const Real* rows = static_cast<const Real*>(matrix.data) + row * matrix.row_stride;
  // Dense rows are one piece, which spares lines that two rows share.
  const bool dense = matrix.row_stride == actions;
  const int64_t pieces = dense ? 1 : count;
  const int64_t elements = (dense ? count : 1) * actions;
  for (int64_t i = 0; i < pieces; ++i) {
    for (int64_t j = 0; j < elements; j += kCacheLineBytes / static_cast<int64_t>(sizeof(Real))) {
      __builtin_prefetch(rows + i * matrix.row_stride + j, for_writing);
      asm volatile("");  // else GCC takes the loop for empty
    }
  }
}

// kActions is the number of actions where the compiler shall know it, else 0.
template <class M, LossKind kind, int kActions, class RowSum>
double rows_per_lane(const DistillArgs& args, int64_t begin, int64_t end) {
  using Real = typename M::Real;
  using V = typename M::V;
  constexpr int64_t lanes = M::kLanes;
  // One odd vector between the arrays: at equal offsets within a page, a load would wait for
  // unrelated stores.
  alignas(64) Real memory[7 * (kMaxLaneActions + 1) * lanes];
  const int64_t actions = kActions > 0 ? kActions : args.actions;
  const int64_t stride = (actions + 1) * lanes;
  Real* const tile = memory + 6 * stride;
  const RowSettings<M> settings(args);
  RowBlock<M> block{memory,
                    memory + stride,
                    V{},
                    V{},
                    actions * lanes,
                    memory + 2 * stride,
                    memory + 3 * stride,
                    memory + 4 * stride,
                    memory + 5 * stride};
  Real ones[lanes];
  for (Real& one : ones) one = Real(1);
  const Real* weights = static_cast<const Real*>(args.weight);
  Real* row_loss = static_cast<Real*>(args.row_loss);
  const Matrix grad_rows{args.grad, args.student.dtype, args.grad_row_stride};
  const bool large = args.batch * actions >= kMinFetchedElements;
  ExactSum<M> sum;
  for (int64_t row = begin; row < end; row += lanes) {
    const int64_t count = end - row < lanes ? end - row : lanes;
    const int64_t next = row + lanes;
    const bool fetches = large && next + lanes <= args.batch;
    if (fetches) fetch_rows<Real, false>(args.student, actions, next, lanes);
    const RowSpan<Real> student = rows_of(args, args.student, row, count, tile);
    block.student_max = tile_to_columns(student.data, student.stride, count, actions, memory);
    if (fetches) fetch_rows<Real, false>(args.teacher, actions, next, lanes);
    const RowSpan<Real> teacher = rows_of(args, args.teacher, row, count, tile);
    block.teacher_max =
        tile_to_columns(teacher.data, teacher.stride, count, actions, memory + stride);
    const auto emit = [&](auto gradient) __attribute__((always_inline)) {
      if (!args.grad) return;
      if (fetches) fetch_rows<Real, true>(grad_rows, actions, next, lanes);
      void* grad = at(args.grad, args.student.dtype, row * args.grad_row_stride);
      const bool plain = is_plain<Real>(args.student);
      columns_to_tile(gradient, count, actions, plain ? static_cast<Real*>(grad) : tile,
                      plain ? args.grad_row_stride : actions);
      for (int64_t i = 0; !plain && i < count; ++i) {
        narrow_row(tile + i * actions, actions, args.student.dtype,
                   at(grad, args.student.dtype, i * args.grad_row_stride));
      }
    };
    // Lanes without a row weigh nothing.
    const V weight = M::load_first(weights ? weights + row : ones, count, Real(0));
    const V loss =
        weight * RowKernel<M, kind, RowPerLane<M, RowSum>>::run(block, settings, weight, emit);
    if (row_loss) M::store_first(row_loss + row, count, loss);
    sum.add(loss);
  }
  return sum.value_of_lanes();
}

template <class M, LossKind kind>
double rows_across_lanes(const DistillArgs& args, int64_t begin, int64_t end, void* memory) {
  using Real = typename M::Real;
  using V = typename M::V;
  using Layout = RowAcrossLanes<M>;
  const int64_t padded = wide_row_elements(args.actions);
  Real* scratch = static_cast<Real*>(memory);
  const RowSettings<M> settings(args);
  const bool in_place =
      is_plain<Real>(args.student) && is_plain<Real>(args.teacher) && !args.action_mask;
  double sum = 0.0;
  for (int64_t row = begin; row < end; ++row) {
    const Real* student = rows_of(args, args.student, row, 1, scratch + 4 * padded).data;
    const Real* teacher = rows_of(args, args.teacher, row, 1, scratch + 5 * padded).data;
    const Real weight = args.weight ? static_cast<const Real*>(args.weight)[row] : Real(1);
    V student_max = M::broadcast(-M::infinity());
    V teacher_max = student_max;
    for (int64_t i = 0; i < args.actions; i += M::kLanes) {
      const V s = Layout::load(student + i, args.actions - i, -M::infinity());
      const V t = Layout::load(teacher + i, args.actions - i, -M::infinity());
      student_max = larger(s, student_max);
      teacher_max = larger(t, teacher_max);
    }
    const bool fetches_next =
        in_place && row + 1 < args.batch && args.actions <= kMaxFetchedActions;
    const RowBlock<M> block{student,
                            teacher,
                            M::broadcast(horizontal_max<M>(student_max)),
                            M::broadcast(horizontal_max<M>(teacher_max)),
                            args.actions,
                            scratch,
                            scratch + padded,
                            scratch + 2 * padded,
                            scratch + 3 * padded,
                            fetches_next ? args.student.row_stride : 0,
                            fetches_next ? args.teacher.row_stride : 0,
                            in_place && args.grad
                                ? static_cast<Real*>(args.grad) + row * args.grad_row_stride
                                : scratch};
    const auto emit = [&](auto gradient) __attribute__((always_inline)) {
      if (!args.grad) return;
      void* grad = at(args.grad, args.student.dtype, row * args.grad_row_stride);
      const bool plain = is_plain<Real>(args.student);
      // The array that no kind reads while it writes gradients; the logits are still needed.
      Real* out = plain ? static_cast<Real*>(grad) : scratch + 3 * padded;
      for (int64_t i = 0; i < args.actions; i += M::kLanes) {
        Layout::store(out + i, args.actions - i, gradient(i));
      }
      if (!plain) narrow_row(out, args.actions, args.student.dtype, grad);
    };
    const Real loss =
        weight * RowKernel<M, kind, Layout>::run(block, settings, M::broadcast(weight), emit)[0];
    if (args.row_loss) static_cast<Real*>(args.row_loss)[row] = loss;
    sum += static_cast<double>(loss);
  }
  return sum;
}

template <class M, LossKind kind>
double rows_of_kind(const DistillArgs& args, int64_t begin, int64_t end, void* memory) {
  if (args.actions > kMaxLaneActions) return rows_across_lanes<M, kind>(args, begin, end, memory);
  // Atari's common action sets: loops of a known length take 10 to 15% less time.
  if constexpr (sizeof(typename M::Real) == sizeof(float)) {
    if (args.actions == 18) return rows_per_lane<M, kind, 18, PlainSum<M>>(args, begin, end);
    if (args.actions == 6) return rows_per_lane<M, kind, 6, PlainSum<M>>(args, begin, end);
  }
  return rows_per_lane<M, kind, 0, ExactSum<M>>(args, begin, end);
}

template <class M>
double rows_of_type(const DistillArgs& args, int64_t begin, int64_t end, void* memory) {
  switch (args.kind) {
    case LossKind::kKl:
      return rows_of_kind<M, LossKind::kKl>(args, begin, end, memory);
    case LossKind::kReverseKl:
      return rows_of_kind<M, LossKind::kReverseKl>(args, begin, end, memory);
    case LossKind::kJsd:
      return rows_of_kind<M, LossKind::kJsd>(args, begin, end, memory);
    case LossKind::kNll:
      return rows_of_kind<M, LossKind::kNll>(args, begin, end, memory);
    case LossKind::kMse:
      return rows_of_kind<M, LossKind::kMse>(args, begin, end, memory);
  }
  return 0.0;
}

double distill_rows(const DistillArgs& args, int64_t begin, int64_t end, void* memory) {
  return uses_float64(args) ? rows_of_type<Math<double>>(args, begin, end, memory)
                            : rows_of_type<Math<float>>(args, begin, end, memory);
}

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
