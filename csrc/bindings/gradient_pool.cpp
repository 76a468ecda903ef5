// SPDX-License-Identifier: MIT
#include "bindings/gradient_pool.h"

#include <pthread.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastdistill {
namespace {

constexpr std::size_t kHugePageBytes = std::size_t{1} << 21;
// Enough for a few students that train side by side; the oldest block goes first.
constexpr std::size_t kMaxBlocks = 4;
constexpr std::size_t kMaxBytes = std::size_t{512} << 20;

class Pool {
 public:
  PoolBlock take(std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (std::size_t i = count_; i-- > 0;) {
        // Not a block of more than twice the size: it would be missing where it fits.
        if (free_[i].bytes < bytes || free_[i].bytes / 2 > bytes) continue;
        return remove(i);
      }
    }
    const std::size_t rounded = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    void* data = std::aligned_alloc(kHugePageBytes, rounded);
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data, rounded, MADV_HUGEPAGE);  // advice: declining it changes only the speed
#endif
    return {data, rounded};
  }

  void give_back(PoolBlock block) {
    std::array<void*, kMaxBlocks + 1> evicted;
    std::size_t evicted_count = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      free_[count_++] = block;
      held_ += block.bytes;
      while (count_ > kMaxBlocks || held_ > kMaxBytes) evicted[evicted_count++] = remove(0).data;
    }
    for (std::size_t i = 0; i < evicted_count; ++i) std::free(evicted[i]);
  }

  std::size_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  // Around a fork, so that the child has the pool as no other thread was changing it, and can lock
  // it; its blocks are the child's own copies.
  void lock() noexcept { mutex_.lock(); }
  void unlock() noexcept { mutex_.unlock(); }

 private:
  PoolBlock remove(std::size_t i) {
    const PoolBlock block = free_[i];
    --count_;
    for (; i < count_; ++i) free_[i] = free_[i + 1];
    held_ -= block.bytes;
    return block;
  }

  std::mutex mutex_;
  std::array<PoolBlock, kMaxBlocks + 1> free_{};  // the oldest first
  std::size_t count_ = 0;
  std::size_t held_ = 0;
};

// Made before any thread, so that no fork finds it half made; never destroyed, because torch may
// free tensors after this module's own clean-up.
constinit Pool pool;
static_assert(std::is_trivially_destructible_v<Pool>);

// Fails only for want of memory.
const int kForkStatus =
    pthread_atfork([] { pool.lock(); }, [] { pool.unlock(); }, [] { pool.unlock(); });

}  // namespace

PoolBlock take_from_pool(std::size_t bytes) {
  if (kForkStatus != 0) throw std::bad_alloc();
  return pool.take(bytes);
}
void give_to_pool(PoolBlock block) { pool.give_back(block); }
std::size_t pooled_bytes() { return pool.held(); }

}  // namespace fastdistill
