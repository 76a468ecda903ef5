// SPDX-License-Identifier: MIT
// Rows of more than 64 actions: a warp per row while both its rows fit in shared memory beside
// several others', else a block per row.
//
// A thread meets the same quads of the row in every pass. What it keeps of them in shared memory is
// its own, so no pass needs a barrier beyond those of the sums; quads that do not fit are read
// again, mostly from the L2 cache.
#pragma once

#include "losses/cuda_row_loss.cuh"

namespace fastdistill::cuda {

inline constexpr std::int64_t kMaxWarpActions = 2048;
inline constexpr int kBlockRowThreads = 512;
inline constexpr int kMaxWarpRowThreads = 128;

template <class Real>
struct QuadPair {
  Quad<Real> student;
  Quad<Real> teacher;
};

struct WideShape {
  int kept_quads;  // per thread and matrix, in shared memory
  bool adjacent;   // rows of all matrices allow wide accesses
};

template <class Real>
class WideCells {
 public:
  FASTDISTILL_DEVICE WideCells(const DistillArgs& args, const WideShape& shape, std::int64_t row,
                               Quad<Real>* memory, int rank, int threads)
      : args_(args),
        student_(element(args.student.data, args.student.dtype, row * args.student.row_stride)),
        teacher_(element(args.teacher.data, args.teacher.dtype, row * args.teacher.row_stride)),
        mask_(args.action_mask == nullptr ? nullptr
                                          : args.action_mask + row * args.mask_row_stride),
        grad_(args.grad == nullptr ? nullptr
                                   : const_cast<void*>(element(args.grad, args.student.dtype,
                                                               row * args.grad_row_stride))),
        memory_(memory + rank),
        kept_quads_(shape.kept_quads),
        rank_(rank),
        threads_(threads),
        quads_((args.actions + static_cast<std::int64_t>(threads) * kQuad - 1) /
               (static_cast<std::int64_t>(threads) * kQuad)),
        adjacent_(shape.adjacent) {}

  template <class F>
  FASTDISTILL_DEVICE void scan(F f) {
    for_logits(0, [&](std::int64_t quad, const Positions& positions, QuadPair<Real>& pair) {
      if (quad < kept_quads_) keep(quad, pair);
      for (int j = 0; j < kQuad; ++j) {
        f(positions.at(j), Pair<Real>{pair.student.v[j], pair.teacher.v[j]});
      }
    });
  }

  template <class Restore, class F>
  FASTDISTILL_DEVICE void update(Restore restore, F f) {
    const auto apply = [&](const Positions& positions, QuadPair<Real>& pair) {
      for (int j = 0; j < kQuad; ++j) {
        const Pair<Real> result =
            f(positions.at(j), Pair<Real>{pair.student.v[j], pair.teacher.v[j]});
        pair.student.v[j] = result.student;
        pair.teacher.v[j] = result.teacher;
      }
    };
    for (std::int64_t quad = 0; quad < kept_end(); ++quad) {
      QuadPair<Real> pair = kept(quad);
      apply(positions(quad), pair);
      keep(quad, pair);
    }
    for_logits(kept_end(), [&](std::int64_t, const Positions& positions, QuadPair<Real>& pair) {
      restore_quad(restore, positions, pair);
      apply(positions, pair);
    });
  }

  template <class Restore, class F>
  FASTDISTILL_DEVICE void finish(Restore restore, F f) {
    if (grad_ == nullptr) return;
    const auto write = [&](const Positions& positions, const QuadPair<Real>& pair) {
      Quad<Real> grad;
      for (int j = 0; j < kQuad; ++j) {
        grad.v[j] = f(positions.at(j), Pair<Real>{pair.student.v[j], pair.teacher.v[j]});
      }
      store_quad(grad, grad_, args_.student.dtype, positions, [](std::int64_t i) { return i; });
    };
    for (std::int64_t quad = 0; quad < kept_end(); ++quad) write(positions(quad), kept(quad));
    for_logits(kept_end(), [&](std::int64_t, const Positions& positions, QuadPair<Real>& pair) {
      restore_quad(restore, positions, pair);
      write(positions, pair);
    });
  }

 private:
  FASTDISTILL_DEVICE Positions positions(std::int64_t quad) const {
    return positions_of(quad, rank_, threads_, args_.actions, adjacent_);
  }
  FASTDISTILL_DEVICE std::int64_t kept_end() const {
    return quads_ < kept_quads_ ? quads_ : kept_quads_;
  }
  FASTDISTILL_DEVICE void keep(std::int64_t quad, const QuadPair<Real>& pair) {
    memory_[2 * quad * threads_] = pair.student;
    memory_[(2 * quad + 1) * threads_] = pair.teacher;
  }
  FASTDISTILL_DEVICE QuadPair<Real> kept(std::int64_t quad) const {
    return {memory_[2 * quad * threads_], memory_[(2 * quad + 1) * threads_]};
  }
  template <class Restore>
  FASTDISTILL_DEVICE void restore_quad(Restore restore, const Positions& positions,
                                       QuadPair<Real>& pair) const {
    for (int j = 0; j < kQuad; ++j) {
      const Pair<Real> result =
          restore(positions.at(j), Pair<Real>{pair.student.v[j], pair.teacher.v[j]});
      pair.student.v[j] = result.student;
      pair.teacher.v[j] = result.teacher;
    }
  }

  // Outside the row and where masked the logits are -inf, which adds nothing to any sum.
  FASTDISTILL_DEVICE void mask(const Positions& positions, QuadPair<Real>& pair) const {
    if (mask_ == nullptr) return;
    for (int j = 0; j < kQuad; ++j) {
      const std::int64_t action = positions.at(j);
      if (action >= positions.end || mask_[action] != 0) continue;
      pair.student.v[j] = -DeviceMath<Real>::infinity();
      pair.teacher.v[j] = -DeviceMath<Real>::infinity();
    }
  }

  // f(quad, positions, logits) for this thread's quads from `begin` on, read from global memory.
  template <class F>
  FASTDISTILL_DEVICE void for_logits(std::int64_t begin, F f) {
    const Real fill = -DeviceMath<Real>::infinity();
    const auto offset = [](std::int64_t action) { return action; };
    for (std::int64_t quad = begin; quad < quads_; quad += kLoadsInFlight) {
      RawQuad<Real> students[kLoadsInFlight];
      RawQuad<Real> teachers[kLoadsInFlight];
#pragma unroll
      for (int i = 0; i < kLoadsInFlight; ++i) {
        students[i] = load_raw<Real>(student_, args_.student.dtype, positions(quad + i), offset);
        teachers[i] = load_raw<Real>(teacher_, args_.teacher.dtype, positions(quad + i), offset);
      }
#pragma unroll
      for (int i = 0; i < kLoadsInFlight; ++i) {
        if (quad + i >= quads_) break;
        const Positions now = positions(quad + i);
        QuadPair<Real> pair = {widen(students[i], args_.student.dtype, now, fill),
                               widen(teachers[i], args_.teacher.dtype, now, fill)};
        mask(now, pair);
        f(quad + i, now, pair);
      }
    }
  }

  const DistillArgs& args_;
  const void* student_;
  const void* teacher_;
  const std::uint8_t* mask_;
  void* grad_;
  Quad<Real>* memory_;
  int kept_quads_;
  int rank_;
  int threads_;
  std::int64_t quads_;
  bool adjacent_;
};

template <LossKind kind, class Real>
__global__ void __launch_bounds__(kMaxWarpRowThreads)
    warp_rows(DistillArgs args, Settings<Real> settings, Workspace workspace, WideShape shape) {
  FASTDISTILL_DYNAMIC_SHARED(memory);
  const int rank = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  Quad<Real>* mine = reinterpret_cast<Quad<Real>*>(memory) + 2 * warp * shape.kept_quads * kWarp;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * warps + warp;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * warps;
  double lost = 0;
  for (std::int64_t row = first; row < args.batch; row += step) {
    WarpTeam team;
    WideCells<Real> cells(args, shape, row, mine, rank, kWarp);
    RowLoss<kind, Real, WarpTeam, WideCells<Real>> loss(settings, team, cells,
                                                        weight_of<Real>(args, row));
    const Real weighted = loss.run();
    if (rank != 0) continue;
    store_row_loss(args, row, weighted, settings.loss_scale);
    lost += static_cast<double>(weighted);
  }
  if (args.loss != nullptr) {
    reduce_loss(lost, workspace, args.scale, args.loss, sizeof(Real) == 8);
  }
}

// Two blocks per multiprocessor: one loads while the other computes.
template <LossKind kind, class Real>
__global__ void __launch_bounds__(kBlockRowThreads, sizeof(Real) == 4 ? 2 : 1)
    block_rows(DistillArgs args, Settings<Real> settings, Workspace workspace, WideShape shape) {
  FASTDISTILL_DYNAMIC_SHARED(memory);
  FASTDISTILL_SHARED(Exchange, exchange);
  BlockTeam team(exchange);
  const int rank = static_cast<int>(threadIdx.x);
  double lost = 0;
  for (std::int64_t row = blockIdx.x; row < args.batch; row += gridDim.x) {
    WideCells<Real> cells(args, shape, row, reinterpret_cast<Quad<Real>*>(memory), rank,
                          static_cast<int>(blockDim.x));
    RowLoss<kind, Real, BlockTeam, WideCells<Real>> loss(settings, team, cells,
                                                         weight_of<Real>(args, row));
    const Real weighted = loss.run();
    if (rank != 0) continue;
    store_row_loss(args, row, weighted, settings.loss_scale);
    lost += static_cast<double>(weighted);
  }
  if (args.loss != nullptr) {
    reduce_loss(lost, workspace, args.scale, args.loss, sizeof(Real) == 8);
  }
}

}  // namespace fastdistill::cuda
