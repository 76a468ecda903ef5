// SPDX-License-Identifier: MIT
#include "bindings/gradient_pool.h"

#include <pthread.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

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
      for (std::size_t i = free_.size(); i-- > 0;) {
        // Not a block of more than twice the size: it would be missing where it fits.
        if (free_[i].bytes < bytes || free_[i].bytes / 2 > bytes) continue;
        const PoolBlock block = free_[i];
        free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
        held_ -= block.bytes;
        return block;
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
    std::vector<PoolBlock> evicted;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(block);
      held_ += block.bytes;
      while (free_.size() > kMaxBlocks || held_ > kMaxBytes) {
        evicted.push_back(free_.front());
        held_ -= free_.front().bytes;
        free_.erase(free_.begin());
      }
    }
    for (const PoolBlock& old : evicted) std::free(old.data);
  }

  std::size_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

  // Around a fork, so that the child has the pool as no other thread was changing it, and can lock
  // it; its blocks are the child's own copies.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
  std::vector<PoolBlock> free_;
  std::size_t held_ = 0;
};

Pool& pool() {
  // Never destroyed: torch may free tensors after this module's own clean-up.
  static Pool* const instance = [] {
    auto* made = new Pool;
    const int status =
        pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
    if (status != 0) throw std::bad_alloc();  // its only reason
    return made;
  }();
  return *instance;
}

// When the module is loaded: a fork while another thread made the pool would leave a child that
// waits for that thread.
[[maybe_unused]] Pool& made_at_once = pool();

}  // namespace

PoolBlock take_from_pool(std::size_t bytes) { return pool().take(bytes); }
void give_to_pool(PoolBlock block) { pool().give_back(block); }
std::size_t pooled_bytes() { return pool().held(); }

}  // namespace fastdistill
