// SPDX-License-Identifier: MIT
#include "common/parallel.h"

#include <atomic>

namespace fastdistill {
namespace {
std::atomic<ParallelFor> pool_loop{nullptr};
}

void set_parallel_for(ParallelFor loop) { pool_loop.store(loop, std::memory_order_release); }

void parallel_for(std::int64_t count, ParallelBody body, void* context) {
  const ParallelFor loop = pool_loop.load(std::memory_order_acquire);
  if (loop == nullptr || count < 2) {
    body(0, count, context);
  } else {
    loop(0, count, 1, body, context);
  }
}

}  // namespace fastdistill
