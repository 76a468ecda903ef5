// SPDX-License-Identifier: MIT
// Longer rows, and short ones in small batches: a warp or a block per row.
//
// A thread meets the same logits of the row in every pass. What it keeps of them in shared memory
// is its own, so no pass needs a barrier beyond those of the sums, and the next row's logits can be
// on their way to each place as soon as this row is done with it. What does not fit is read again
// in each pass, mostly from the L2 cache.
#pragma once

#include "losses/cuda_row_loss.cuh"

namespace fastdistill::cuda {

inline constexpr std::int64_t kMaxWarpActions = 2048;

// Of a block; what takes more registers has fewer threads.
template <class Access>
inline constexpr int kMaxWideThreads = Access::kIsDense                     ? 1024
                                       : sizeof(typename Access::Real) == 4 ? 512
                                                                            : 256;

// Shared memory for one vector of each matrix.
template <class Access>
inline constexpr std::int64_t kVectorBytes =
    2 * static_cast<std::int64_t>(sizeof(Group<typename Access::Stored, Access::kVector>));

template <class Access>
class WideCells {
  using Real = typename Access::Real;
  using Stored = typename Access::Stored;
  static constexpr int kVector = Access::kVector;
  using Vector = Group<Stored, kVector>;
  using Vectors = Pair<Vector>;

 public:
  // `memory` holds 2 * kept vectors for each thread of the team.
  FASTDISTILL_DEVICE WideCells(const DistillArgs& args, int kept, void* memory, int rank,
                               int threads)
      : args_(args), memory_(static_cast<Vector*>(memory) + rank), rank_(rank), threads_(threads) {
    const std::int64_t all = (args.actions + kVector - 1) / kVector;
    // Single elements are dealt out in turn, so the last vector may be of any thread.
    const std::int64_t mine = Access::kIsDense ? all - rank + threads - 1 : all + threads - 1;
    count_ = static_cast<int>(mine / threads);
    kept_ = count_ < kept ? count_ : kept;
  }

  // Once, before the first row.
  FASTDISTILL_DEVICE void begin(std::int64_t row) {
    if constexpr (Access::kIsDense) {
      set_next(row);
      for (int i = 0; i < kept_; ++i) fetch(i);
    }
  }

  // The passes are over `row` from now on; `next` comes after it if that is in the batch.
  FASTDISTILL_DEVICE void enter(std::int64_t row, std::int64_t next) {
    if constexpr (Access::kIsDense) {
      student_ = next_student_;
      teacher_ = next_teacher_;
      grad_ = args_.grad == nullptr
                  ? nullptr
                  : static_cast<Stored*>(args_.grad) + row * args_.grad_row_stride;
      has_next_ = next < args_.batch;
      if (has_next_) set_next(next);
      platform::wait_copies();
    } else {
      row_ = row;
      for (int i = 0; i < kept_; ++i) keep(i, load(i));
    }
  }

  template <class F>
  FASTDISTILL_DEVICE void scan(F f) {
    const auto apply = [&](int i, const Vectors& vectors) { for_logits(i, vectors, f); };
    for (int i = 0; i < kept_; ++i) apply(i, kept(i));
    for_others(apply);
  }

  template <class F>
  FASTDISTILL_DEVICE void finish(F f) {
    const auto write = [&](int i, const Vectors& vectors) {
      if (args_.grad == nullptr) return;
      Real grad[kVector];
      int j = 0;
      for_logits(i, vectors,
                 [&](std::int64_t at, Pair<Real> logits) { grad[j++] = f(at, logits); });
      store(i, narrow_group<typename Access::InShared>(grad));
    };
    for (int i = 0; i < kept_; ++i) {
      const Vectors vectors = kept(i);
      if constexpr (Access::kIsDense) {
        if (has_next_) fetch(i);
      }
      write(i, vectors);
    }
    for_others(write);
  }

 private:
  // f(action, logits) for the elements of the thread's vector i.
  template <class F>
  FASTDISTILL_DEVICE void for_logits(int i, const Vectors& vectors, F f) const {
    Real student[kVector];
    Real teacher[kVector];
    widen_group<typename Access::InShared>(vectors.student, student);
    widen_group<typename Access::InShared>(vectors.teacher, teacher);
#pragma unroll
    for (int j = 0; j < kVector; ++j) f(action(i, j), Pair<Real>{student[j], teacher[j]});
  }

  // Of element j of the thread's vector i: adjacent in a vector, or beside the other threads'.
  FASTDISTILL_DEVICE std::int64_t action(int i, int j) const {
    if constexpr (Access::kIsDense) return (i * threads_ + rank_) * kVector + j;
    return (static_cast<std::int64_t>(i) * kVector + j) * threads_ + rank_;
  }

  FASTDISTILL_DEVICE void keep(int i, const Vectors& vectors) {
    memory_[2 * i * threads_] = vectors.student;
    memory_[(2 * i + 1) * threads_] = vectors.teacher;
  }
  FASTDISTILL_DEVICE Vectors kept(int i) const {
    return {memory_[2 * i * threads_], memory_[(2 * i + 1) * threads_]};
  }

  FASTDISTILL_DEVICE void set_next(std::int64_t row) {
    next_student_ = static_cast<const Stored*>(args_.student.data) + row * args_.student.row_stride;
    next_teacher_ = static_cast<const Stored*>(args_.teacher.data) + row * args_.teacher.row_stride;
  }
  FASTDISTILL_DEVICE void fetch(int i) {
    const std::int64_t first = action(i, 0);
    platform::copy_async<kAccessBytes>(memory_ + 2 * i * threads_, next_student_ + first);
    platform::copy_async<kAccessBytes>(memory_ + (2 * i + 1) * threads_, next_teacher_ + first);
  }

  // Outside the row the logits are -inf, which adds nothing to any sum.
  FASTDISTILL_DEVICE Vectors load(int i) const {
    Vectors vectors;
    if constexpr (Access::kIsDense) {
      const std::int64_t first = action(i, 0);
      vectors.student = *reinterpret_cast<const Vector*>(student_ + first);
      vectors.teacher = *reinterpret_cast<const Vector*>(teacher_ + first);
    } else {
      load_elements(args_.student, i, vectors.student);
      load_elements(args_.teacher, i, vectors.teacher);
      if (args_.action_mask == nullptr) return vectors;
      const std::uint8_t* mask = args_.action_mask + row_ * args_.mask_row_stride;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const std::int64_t at = action(i, j);
        if (at >= args_.actions || mask[at] != 0) continue;
        vectors.student.v[j] = vectors.teacher.v[j] = -DeviceMath<Real>::infinity();
      }
    }
    return vectors;
  }
  FASTDISTILL_DEVICE void load_elements(const Matrix& matrix, int i, Vector& vector) const {
    const void* row = element(matrix.data, matrix.dtype, row_ * matrix.row_stride);
    with_storage<Real>(matrix.dtype, [&](auto storage) {
      using S = decltype(storage);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const std::int64_t at = action(i, j);
        vector.v[j] =
            at < args_.actions
                ? static_cast<Real>(S::widen(static_cast<const typename S::Bits*>(row)[at]))
                : -DeviceMath<Real>::infinity();
      }
    });
  }
  FASTDISTILL_DEVICE void store(int i, const Vector& grad) {
    if constexpr (Access::kIsDense) {
      *reinterpret_cast<Vector*>(grad_ + action(i, 0)) = grad;
    } else {
      with_storage<Real>(args_.student.dtype, [&](auto storage) {
        using S = decltype(storage);
        auto* row = static_cast<typename S::Bits*>(args_.grad) + row_ * args_.grad_row_stride;
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const std::int64_t at = action(i, j);
          if (at < args_.actions) row[at] = S::narrow(grad.v[j]);
        }
      });
    }
  }

  // f(i, vectors) for those that are not kept; each is loaded while the one before is worked on.
  template <class F>
  FASTDISTILL_DEVICE void for_others(F f) {
    if (kept_ == count_) return;
    Vectors ahead = load(kept_);
    for (int i = kept_; i < count_; ++i) {
      const Vectors now = ahead;
      if (i + 1 < count_) ahead = load(i + 1);
      f(i, now);
    }
  }

  const DistillArgs& args_;
  Vector* memory_;
  int rank_;
  int threads_;
  int count_;  // vectors of this thread
  int kept_;   // of them in shared memory
  std::int64_t row_ = 0;
  const Stored* student_ = nullptr;
  const Stored* teacher_ = nullptr;
  Stored* grad_ = nullptr;
  const Stored* next_student_ = nullptr;
  const Stored* next_teacher_ = nullptr;
  bool has_next_ = false;
};

// Rows first, first + step, ... of the batch by a team of `threads`.
template <LossKind kind, class Access, class Team>
FASTDISTILL_DEVICE double rows_of_team(const DistillArgs& args,
                                       const Settings<typename Access::Real>& settings, Team& team,
                                       WideCells<Access>& cells, bool writes, std::int64_t first,
                                       std::int64_t step) {
  using Real = typename Access::Real;
  double lost = 0;
  if (first < args.batch) cells.begin(first);
  for (std::int64_t row = first; row < args.batch; row += step) {
    cells.enter(row, row + step);
    RowLoss<kind, Real, Team, WideCells<Access>> loss(settings, team, cells,
                                                      weight_of<Real>(args, row), writes);
    const Real weighted = loss.run();
    if (!writes) continue;
    store_row_loss(args, row, weighted, settings.loss_scale);
    lost += static_cast<double>(weighted);
  }
  return lost;
}

template <LossKind kind, class Access>
__global__ void __launch_bounds__(kMaxWideThreads<Access>)
    warp_rows(DistillArgs args, Settings<typename Access::Real> settings, Workspace workspace,
              int kept) {
  FASTDISTILL_DYNAMIC_SHARED(memory);
  const int rank = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  FASTDISTILL_SHARED(Exchange, exchange);
  BlockTeam block(exchange);
  WarpTeam team;
  WideCells<Access> cells(args, kept, memory + warp * kept * kWarp * kVectorBytes<Access>, rank,
                          kWarp);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * warps + warp;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * warps;
  const double lost =
      rows_of_team<kind, Access>(args, settings, team, cells, rank == 0, first, step);
  if (args.loss != nullptr) {
    reduce_loss(block, lost, workspace, args.scale, args.loss, sizeof(typename Access::Real) == 8);
  }
}

template <LossKind kind, class Access>
__global__ void __launch_bounds__(kMaxWideThreads<Access>)
    block_rows(DistillArgs args, Settings<typename Access::Real> settings, Workspace workspace,
               int kept) {
  FASTDISTILL_DYNAMIC_SHARED(memory);
  FASTDISTILL_SHARED(Exchange, exchange);
  BlockTeam team(exchange);
  const int rank = static_cast<int>(threadIdx.x);
  WideCells<Access> cells(args, kept, memory, rank, static_cast<int>(blockDim.x));
  const double lost =
      rows_of_team<kind, Access>(args, settings, team, cells, rank == 0, blockIdx.x, gridDim.x);
  if (args.loss != nullptr) {
    reduce_loss(team, lost, workspace, args.scale, args.loss, sizeof(typename Access::Real) == 8);
  }
}

}  // namespace fastdistill::cuda
