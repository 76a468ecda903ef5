// SPDX-License-Identifier: MIT
// A zeroed array straight from the kernel, on 2 MiB pages where the system grants them: a replay
// of a million frames read at random otherwise spends its time on address translation.
// Pages are only taken when first written, so a buffer that is half full costs half.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

namespace fastdistill {

template <class T>
class HugeArray {
  static_assert(std::is_trivial_v<T>, "the kernel's zero pages are the initial value");

 public:
  HugeArray() = default;
  explicit HugeArray(std::size_t size) : size_(size) {
    if (size == 0) return;
    void* memory = ::mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    // Small arrays keep small pages: a test's buffer of four rows must not cost 2 MiB.
    if (bytes() >= kHugePageBytes) (void)::madvise(memory, bytes(), MADV_HUGEPAGE);
#endif
    data_ = static_cast<T*>(memory);
  }
  HugeArray(HugeArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  HugeArray& operator=(HugeArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~HugeArray() {
    if (data_ != nullptr) ::munmap(data_, bytes());
  }

  T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t bytes() const noexcept { return size_ * sizeof(T); }
  T& operator[](std::size_t i) const noexcept { return data_[i]; }

 private:
  static constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace fastdistill
