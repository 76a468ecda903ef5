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

// Whether rows [row, row + count) lie in memory as one tile of the arithmetic type.
template <class Real>
FASTDISTILL_HD bool is_plain(const Matrix& matrix) {
  return matrix.dtype == (sizeof(Real) == 8 ? DType::kFloat64 : DType::kFloat32);
}

template <class Real>
void mask_row(const DistillArgs& args, int64_t row, int64_t step, Real* student, Real* teacher) {
  const uint8_t* mask = args.action_mask + row * args.mask_row_stride;
  for (int64_t j = 0; j < args.actions; ++j) {
    if (mask[j] != 0) continue;
    student[j * step] = -Math<Real>::infinity();
    teacher[j * step] = -Math<Real>::infinity();
  }
}

template <class M, LossKind kind>
double rows_per_lane(const DistillArgs& args, int64_t begin, int64_t end) {
  using Real = typename M::Real;
  using V = typename M::V;
  constexpr int64_t lanes = M::kLanes;
  // One odd vector between the arrays: at equal offsets within a page, a load would wait for
  // unrelated stores.
  alignas(64) Real memory[7 * (kMaxLaneActions + 1) * lanes];
  const int64_t actions = args.actions;
  const int64_t stride = (actions + 1) * lanes;
  Real* const student = memory;
  Real* const teacher = memory + stride;
  Real* const scratch = memory + 2 * stride;
  Real* const tile = memory + 6 * stride;
  const RowSettings<M> settings(args);
  const RowBlock<M> block{student,
                          teacher,
                          actions * lanes,
                          scratch,
                          scratch + stride,
                          scratch + 2 * stride,
                          scratch + 3 * stride,
                          args.grad ? tile : nullptr};
  const auto columns_of = [&](const Matrix& matrix, int64_t row, int64_t count, Real* columns) {
    if (is_plain<Real>(matrix)) {
      const Real* rows = static_cast<const Real*>(matrix.data) + row * matrix.row_stride;
      tile_to_columns(rows, matrix.row_stride, count, actions, columns);
      return;
    }
    for (int64_t i = 0; i < count; ++i) widen_row(matrix, row + i, actions, scratch + i * actions);
    tile_to_columns(scratch, actions, count, actions, columns);
  };
  Real ones[lanes];
  for (Real& one : ones) one = Real(1);
  const Real* weights = static_cast<const Real*>(args.weight);
  Real* row_loss = static_cast<Real*>(args.row_loss);
  ExactSum<M> sum;
  for (int64_t row = begin; row < end; row += lanes) {
    const int64_t count = end - row < lanes ? end - row : lanes;
    columns_of(args.student, row, count, student);
    columns_of(args.teacher, row, count, teacher);
    if (args.action_mask) {
      for (int64_t i = 0; i < count; ++i) mask_row(args, row + i, lanes, student + i, teacher + i);
    }
    // Lanes without a row weigh nothing.
    const V weight = M::load_first(weights ? weights + row : ones, count, Real(0));
    const V loss = weight * RowKernel<M, kind, RowPerLane<M>>::run(block, settings, weight);
    if (row_loss) M::store_first(row_loss + row, count, loss);
    sum.add(loss);
    if (!args.grad) continue;
    void* grad = at(args.grad, args.student.dtype, row * args.grad_row_stride);
    if (is_plain<Real>(args.student)) {
      columns_to_tile(tile, count, actions, static_cast<Real*>(grad), args.grad_row_stride);
      continue;
    }
    columns_to_tile(tile, count, actions, scratch, actions);
    for (int64_t i = 0; i < count; ++i) {
      narrow_row(scratch + i * actions, actions, args.student.dtype,
                 at(args.grad, args.student.dtype, (row + i) * args.grad_row_stride));
    }
  }
  return sum.value();
}

template <class M, LossKind kind>
double rows_across_lanes(const DistillArgs& args, int64_t begin, int64_t end, void* memory) {
  using Real = typename M::Real;
  const int64_t padded = wide_row_elements(args.actions);
  Real* scratch = static_cast<Real*>(memory);
  const RowSettings<M> settings(args);
  double sum = 0.0;
  for (int64_t row = begin; row < end; ++row) {
    const auto row_of = [&](const Matrix& matrix, Real* copy) -> const Real* {
      if (is_plain<Real>(matrix) && !args.action_mask) {
        return static_cast<const Real*>(matrix.data) + row * matrix.row_stride;
      }
      widen_row(matrix, row, args.actions, copy);
      return copy;
    };
    const Real* student = row_of(args.student, scratch + 4 * padded);
    const Real* teacher = row_of(args.teacher, scratch + 5 * padded);
    if (args.action_mask) mask_row(args, row, 1, scratch + 4 * padded, scratch + 5 * padded);
    const Real weight = args.weight ? static_cast<const Real*>(args.weight)[row] : Real(1);
    void* grad =
        args.grad ? at(args.grad, args.student.dtype, row * args.grad_row_stride) : nullptr;
    const bool plain = is_plain<Real>(args.student);
    // The array that no kind reads while it writes gradients; the logits are still needed.
    Real* grad_row = plain || !grad ? static_cast<Real*>(grad) : scratch + 3 * padded;
    const RowBlock<M> block{student,
                            teacher,
                            args.actions,
                            scratch,
                            scratch + padded,
                            scratch + 2 * padded,
                            scratch + 3 * padded,
                            grad_row};
    const Real loss = weight * RowKernel<M, kind, RowAcrossLanes<M>>::run(block, settings,
                                                                          M::broadcast(weight))[0];
    if (args.row_loss) static_cast<Real*>(args.row_loss)[row] = loss;
    sum += static_cast<double>(loss);
    if (grad && !plain) narrow_row(grad_row, args.actions, args.student.dtype, grad);
  }
  return sum;
}

template <class M, LossKind kind>
double rows_of_kind(const DistillArgs& args, int64_t begin, int64_t end, void* memory) {
  return args.actions <= kMaxLaneActions ? rows_per_lane<M, kind>(args, begin, end)
                                         : rows_across_lanes<M, kind>(args, begin, end, memory);
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
