// SPDX-License-Identifier: MIT
// Every write to memory that threads of the replay share goes through a Sync policy. DirectSync,
// the one in use, is the plain operation. A test passes its own, which can stop a thread in front
// of any of these writes and watch the others finish.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastdistill::replay {

// Note [Copies that race]
// A reader copies a row while its lane's writer may be overwriting it, then asks the lane's cursor
// whether that happened and drops the copy if so: a seqlock. C++20 has no bytewise atomic copy
// (P1478 proposes it), so by the letter of the standard such a copy needs atomic words. One by one
// these cost a third of the speed (107 us against 70 us for 32 rows of 7 frames; Zen 5, 2026-11).
// Hence two forms of one protocol:
// - under ThreadSanitizer: 8-byte atomic words, loads acquire and stores release, no fences;
// - otherwise: memcpy behind a call the compiler cannot see through, with fences. The race is
//   then one of the hardware's memory model, in which it is harmless: torn bytes are discarded.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kAtomicWordCopies = true;
#else
inline constexpr bool kAtomicWordCopies = false;
#endif

[[gnu::noinline]] inline void opaque_copy(void* to, const void* from, std::size_t bytes) noexcept {
  std::memcpy(to, from, bytes);
  asm volatile("" ::: "memory");
}

inline std::atomic_ref<std::uint64_t> shared_word(std::byte* shared) noexcept {
  return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(shared));
}

// Copies out of shared memory; `shared` is 8-byte aligned and padded to whole words.
inline void read_shared(void* to, std::byte* shared, std::size_t bytes) noexcept {
  if constexpr (!kAtomicWordCopies) {
    opaque_copy(to, shared, bytes);
  } else {
    auto* out = static_cast<std::byte*>(to);
    for (std::size_t at = 0; at < bytes; at += 8) {
      const std::uint64_t word = shared_word(shared + at).load(std::memory_order_acquire);
      std::memcpy(out + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
  }
}

// After the copies and before the cursor check: the check must not be read ahead of the bytes.
inline void finish_shared_reads() noexcept {
  if constexpr (!kAtomicWordCopies) std::atomic_thread_fence(std::memory_order_acquire);
}

// Stores whole words in order, calling `before_word` in front of each.
template <class BeforeWord>
void write_shared_words(std::byte* shared, const void* from, std::size_t bytes,
                        BeforeWord&& before_word) noexcept {
  const auto* in = static_cast<const std::byte*>(from);
  for (std::size_t at = 0; at < bytes; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, in + at, bytes - at < 8 ? bytes - at : 8);
    before_word();
    shared_word(shared + at).store(word, std::memory_order_release);
  }
}

struct DirectSync {
  template <class Atomic, class Value>
  static void store(Atomic&& to, Value value, std::memory_order order) noexcept {
    to.store(value, order);
  }
  template <class Atomic, class Value>
  static auto exchange(Atomic&& in, Value value, std::memory_order order) noexcept {
    return in.exchange(value, order);
  }
  template <class Atomic, class Value>
  static auto fetch_add(Atomic&& in, Value value, std::memory_order order) noexcept {
    return in.fetch_add(value, order);
  }
  template <class Atomic, class Value>
  static bool compare_exchange(Atomic&& in, Value& expected, Value desired,
                               std::memory_order order) noexcept {
    return in.compare_exchange_weak(expected, desired, order, std::memory_order_relaxed);
  }
  // Copies into shared memory; `shared` is 8-byte aligned and padded to whole words.
  static void write_shared(std::byte* shared, const void* from, std::size_t bytes) noexcept {
    if constexpr (kAtomicWordCopies) {
      write_shared_words(shared, from, bytes, [] {});
    } else {
      opaque_copy(shared, from, bytes);
    }
  }
  // As write_shared, for a record that readers load by words.
  static void write_record(std::byte* shared, const void* from, std::size_t bytes) noexcept {
    write_shared_words(shared, from, bytes, [] {});
  }
};

// glibc's memcpy may use non-temporal stores from here on (the least that its tunable allows). They
// are not ordered behind earlier stores, as all others of x86 are.
inline constexpr std::size_t kMinNonTemporalBytes = 0x4040;

// Between the announcing cursor and the first byte: no byte may be seen before the announcement.
inline void begin_shared_writes(std::size_t bytes) noexcept {
  if constexpr (kAtomicWordCopies) return;
  if (bytes < kMinNonTemporalBytes) {
    std::atomic_thread_fence(std::memory_order_release);
  } else {
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
}

}  // namespace fastdistill::replay
