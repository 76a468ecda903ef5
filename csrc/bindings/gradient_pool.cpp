// SPDX-License-Identifier: MIT
#include "bindings/gradient_pool.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace py = pybind11;

namespace fastdistill {
namespace {

constexpr std::size_t kHugePageBytes = std::size_t{1} << 21;
// Enough for a few students that train side by side; the oldest block goes first.
constexpr std::size_t kMaxBlocks = 4;
constexpr std::size_t kMaxBytes = std::size_t{512} << 20;

struct Block {
  void* data;
  std::size_t bytes;
};

class Pool {
 public:
  Block take(std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (std::size_t i = free_.size(); i-- > 0;) {
        // Not a block of more than twice the size: it would be missing where it fits.
        if (free_[i].bytes < bytes || free_[i].bytes / 2 > bytes) continue;
        const Block block = free_[i];
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

  void give_back(Block block) {
    std::vector<Block> evicted;
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
    for (const Block& old : evicted) std::free(old.data);
  }

  std::size_t held() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_;
  }

 private:
  std::mutex mutex_;
  std::vector<Block> free_;
  std::size_t held_ = 0;
};

Pool& pool() {
  // Never destroyed: torch may free tensors after this module's own clean-up.
  static Pool* const instance = new Pool;
  return *instance;
}

// One tensor's memory together with the description that DLPack's consumer reads and releases.
struct PooledTensor {
  dlpack::ManagedTensor managed;
  std::int64_t shape[2];
  std::int64_t strides[2];
  Block block;
};

void release(dlpack::ManagedTensor* managed) {
  const std::unique_ptr<PooledTensor> tensor(static_cast<PooledTensor*>(managed->context));
  pool().give_back(tensor->block);
}

}  // namespace

py::object pooled_tensor(std::int64_t rows, std::int64_t columns, dlpack::Type dtype) {
  const dlpack::ExchangeApi* api = torch_api().api;
  auto tensor = std::make_unique<PooledTensor>();
  tensor->block = pool().take(static_cast<std::size_t>(rows * columns) * dtype.bits / 8);
  tensor->shape[0] = rows;
  tensor->shape[1] = columns;
  tensor->strides[0] = columns;
  tensor->strides[1] = 1;
  tensor->managed = {{api->version.major, api->version.minor}, tensor.get(), &release, 0, {}};
  tensor->managed.tensor = {tensor->block.data, {dlpack::kCpu, 0}, 2, dtype,
                            tensor->shape,      tensor->strides,   0};
  void* object = nullptr;
  // From here on torch owns the memory and calls `release`, also if it fails.
  if (api->managed_to_object(&tensor.release()->managed, &object) != 0)
    throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

std::int64_t pooled_bytes() { return static_cast<std::int64_t>(pool().held()); }

}  // namespace fastdistill
