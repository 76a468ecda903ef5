// SPDX-License-Identifier: MIT
#include "common/parallel.h"

#include <atomic>
#include <exception>
#include <stdexcept>
#include <string>

namespace fastdistill {
namespace {

std::atomic<ParallelFor> pool_loop{nullptr};

// Keeps the first exception of a loop's bodies. The pool would swallow it and turn it into a status
// at best, and the caller would take results for computed that nobody has written.
struct GuardedBody {
  ParallelBody body;
  void* context;
  std::atomic<bool> has_failed{false};
  std::exception_ptr failure;

  static void run(std::int64_t begin, std::int64_t end, void* self) noexcept {
    auto& guard = *static_cast<GuardedBody*>(self);
    try {
      guard.body(begin, end, guard.context);
    } catch (...) {
      if (!guard.has_failed.exchange(true, std::memory_order_relaxed)) {
        guard.failure = std::current_exception();
      }
    }
  }
};

}  // namespace

void set_parallel_for(ParallelFor loop) { pool_loop.store(loop, std::memory_order_release); }

void parallel_for(std::int64_t count, ParallelBody body, void* context) {
  const ParallelFor loop = pool_loop.load(std::memory_order_acquire);
  if (loop == nullptr || count < 2) {
    body(0, count, context);
    return;
  }
  GuardedBody guard{.body = body, .context = context, .failure = nullptr};
  const int status = loop(0, count, 1, &GuardedBody::run, &guard);
  if (guard.failure) std::rethrow_exception(guard.failure);
  if (status != 0) {
    throw std::runtime_error("fastdistill: torch_parallel_for must return 0, got " +
                             std::to_string(status) + "; part of the work was not done");
  }
}

}  // namespace fastdistill
