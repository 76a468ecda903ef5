// SPDX-License-Identifier: MIT
// DQN's loss on the taken actions: a block takes a tile of rows, a thread per row computes loss and
// slope, then all threads write the tile's dense gradient in memory order.
#pragma once

#include "losses/cuda_team.cuh"

namespace fastdistill::cuda {

inline constexpr int kTdThreads = 128;

template <class Real>
struct TdRow {
  Real loss;
  Real td_abs;
  Real slope;  // d loss / d q[action]
};

template <class Real>
FASTDISTILL_DEVICE TdRow<Real> td_row(TdKind kind, Real td) {
  const Real size = td < Real(0) ? -td : td;
  if (kind == TdKind::kMse) return {td * td, size, Real(2) * td};
  if (size < Real(1)) return {Real(0.5) * td * td, size, td};
  // Written so that a NaN goes through.
  return {size - Real(0.5), size, td / size};
}

// Returns the row's loss times its weight and scale.
template <class Real>
FASTDISTILL_DEVICE Real td_of_row(const TdArgs& args, std::int64_t row, Real& slope) {
  const std::int64_t action = args.action[row];
  const Real weight = args.weight == nullptr ? Real(1) : static_cast<const Real*>(args.weight)[row];
  const Real factor = weight * static_cast<Real>(args.scale);
  const bool known = action >= 0 && action < args.actions;
  TdRow<Real> result;
  if (known) {
    const Real q = static_cast<const Real*>(args.q.data)[row * args.q.row_stride + action];
    result = td_row(args.kind, q - static_cast<const Real*>(args.target)[row]);
  } else {
    result = {static_cast<Real>(NAN), static_cast<Real>(NAN), Real(0)};
  }
  const bool silent = weight == Real(0);
  const Real loss = silent ? Real(0) : factor * result.loss;
  slope = silent || !known ? Real(0) : factor * result.slope;
  static_cast<Real*>(args.td_abs)[row] = result.td_abs;
  if (args.row_loss != nullptr) static_cast<Real*>(args.row_loss)[row] = loss;
  return loss;
}

template <class Real>
__global__ void __launch_bounds__(kTdThreads) td_rows(TdArgs args, Workspace workspace) {
  struct Slopes {
    Real slope[kTdThreads];
    std::int64_t action[kTdThreads];
  };
  FASTDISTILL_SHARED(Slopes, taken);
  FASTDISTILL_SHARED(Exchange, exchange);
  BlockTeam team(exchange);
  const int rank = static_cast<int>(threadIdx.x);
  const std::int64_t grid_step = static_cast<std::int64_t>(gridDim.x) * kTdThreads;
  const bool wants_grad = args.grad != nullptr && args.actions > 0;
  const std::int64_t row_step = wants_grad ? kTdThreads / args.actions : 0;
  const std::int64_t action_step = wants_grad ? kTdThreads % args.actions : 0;
  double lost = 0;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTdThreads; first < args.batch;
       first += grid_step) {
    const std::int64_t rows = args.batch - first < kTdThreads ? args.batch - first : kTdThreads;
    if (rank < rows) {
      lost += static_cast<double>(td_of_row<Real>(args, first + rank, taken.slope[rank]));
      taken.action[rank] = args.action[first + rank];
    }
    if (!wants_grad) continue;
    __syncthreads();
    std::int64_t row = rank / args.actions;
    std::int64_t action = rank % args.actions;
    while (row < rows) {
      const Real value = action == taken.action[row] ? taken.slope[row] : Real(0);
      static_cast<Real*>(args.grad)[(first + row) * args.actions + action] = value;
      row += row_step;
      action += action_step;
      if (action >= args.actions) {
        action -= args.actions;
        ++row;
      }
    }
    __syncthreads();
  }
  if (args.loss != nullptr) {
    reduce_loss(team, lost, workspace, 1.0, args.loss, sizeof(Real) == 8);
  }
}

}  // namespace fastdistill::cuda
