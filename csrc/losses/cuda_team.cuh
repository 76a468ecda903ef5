// SPDX-License-Identifier: MIT
// The threads that share a row (one, a warp or a block) and how they combine values; then the sum
// of all rows' losses over the blocks of a launch. Every order of addition is fixed: the same call
// on the same device gives the same bits.
#pragma once

#include "losses/cuda_memory.cuh"

namespace fastdistill::cuda {

inline constexpr int kWarp = 32;

struct Sum {
  template <class T>
  FASTDISTILL_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
// A NaN is passed over.
struct Max {
  FASTDISTILL_DEVICE float operator()(float a, float b) const { return ::fmaxf(a, b); }
  FASTDISTILL_DEVICE double operator()(double a, double b) const { return ::fmax(a, b); }
  FASTDISTILL_DEVICE int operator()(int a, int b) const { return a > b ? a : b; }
};
struct Min {
  template <class T>
  FASTDISTILL_DEVICE T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// All lanes get the result. `lanes` (a power of two) adjacent lanes combine.
template <class T, class Op>
FASTDISTILL_DEVICE T combine_lanes(T value, Op op, int lanes = kWarp) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    value = op(value, __shfl_xor_sync(0xFFFFFFFFu, value, mask));
  }
  return value;
}

struct ThreadTeam {
  template <class Op, class... T>
  FASTDISTILL_DEVICE void combine(Op, T&...) const {}
};

struct WarpTeam {
  template <class Op, class... T>
  FASTDISTILL_DEVICE void combine(Op op, T&... values) const {
    ((values = combine_lanes(values, op)), ...);
  }
};

// Shared memory through which the warps of a block exchange values. Two halves take turns: a warp
// writes a half again only after the barrier of the turn between, when everyone has read it.
struct Exchange {
  static constexpr int kValues = 3;
  double slots[2][kValues][kWarp];
};

class BlockTeam {
 public:
  explicit FASTDISTILL_DEVICE BlockTeam(Exchange& exchange) : exchange_(&exchange) {}

  // At most Exchange::kValues values. The block has a power of two of warps.
  template <class Op, class... T>
  FASTDISTILL_DEVICE void combine(Op op, T&... values) {
    static_assert(sizeof...(T) <= Exchange::kValues);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    int index = 0;
    ((values = combine_lanes(values, op), lane == 0 ? put(index++, warp, values) : void()), ...);
    __syncthreads();
    index = 0;
    ((get(index++, lane % warps, values), values = combine_lanes(values, op, warps)), ...);
    turn_ ^= 1;
  }

 private:
  template <class T>
  FASTDISTILL_DEVICE void put(int index, int warp, T value) {
    memcpy(&exchange_->slots[turn_][index][warp], &value, sizeof(T));
  }
  template <class T>
  FASTDISTILL_DEVICE void get(int index, int warp, T& value) const {
    memcpy(&value, &exchange_->slots[turn_][index][warp], sizeof(T));
  }

  Exchange* exchange_;
  int turn_ = 0;
};

struct Workspace {
  unsigned* ticket;  // 0 before and after each launch
  double* parts;     // one per block
};

// Called by all threads of all blocks with what their rows lost; writes scale times the sum.
// The block that takes the last ticket adds up the parts, always in the same order.
FASTDISTILL_DEVICE void reduce_loss(BlockTeam& team, double thread_loss, const Workspace& workspace,
                                    double scale, void* loss, bool float64) {
  FASTDISTILL_SHARED(bool, is_last);
  double total = thread_loss;
  team.combine(Sum{}, total);
  const unsigned blocks = gridDim.x;
  if (blocks > 1) {
    if (threadIdx.x == 0) {
      workspace.parts[blockIdx.x] = total;
      __threadfence();
      is_last = atomicInc(workspace.ticket, blocks - 1) == blocks - 1;
      __threadfence();
    }
    __syncthreads();
    if (!is_last) return;
    total = 0;
    for (unsigned block = threadIdx.x; block < blocks; block += blockDim.x) {
      total += platform::load_shared_result(workspace.parts + block);
    }
    team.combine(Sum{}, total);
  }
  if (threadIdx.x != 0) return;
  if (float64) {
    *static_cast<double*>(loss) = total * scale;
  } else {
    *static_cast<float*>(loss) = static_cast<float>(total * scale);
  }
}

}  // namespace fastdistill::cuda
