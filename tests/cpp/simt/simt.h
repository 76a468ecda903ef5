// SPDX-License-Identifier: MIT
// A small SIMT machine: CUDA kernel source compiles as C++ and runs on the CPU through it.
//
// Every CUDA thread is a fiber. Several blocks are resident at once, their threads run in random
// order, and a thread gives way at barriers, shuffles, atomics and fences. Under ThreadSanitizer a
// fiber is a thread of its own that only barriers and fences order with others, so a missing
// __syncthreads or __threadfence is reported as a data race whatever the order of execution was.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "losses/cuda_grid.h"

namespace simt {

struct Index {
  unsigned x;
};

Index thread_index();
Index block_index();
Index block_size();
Index grid_size();

void barrier(const char* file, int line);
void fence(const char* file, int line);
std::uint64_t shuffle(std::uint64_t bits, unsigned source_lane);
unsigned atomic_increment(unsigned* counter, unsigned limit);
void* dynamic_shared();
void* static_shared(const void* key, std::size_t bytes);

// The machine's properties, for tests to set between launches.
struct Machine {
  std::int64_t multiprocessors = 3;
  std::int64_t shared_bytes_per_block = 227 * 1024;
  std::int64_t shared_bytes_per_multiprocessor = 228 * 1024;
  std::uint64_t seed = 1;           // of the order of execution
  std::int64_t launches = 0;        // counted by run
  const char* skip_site = nullptr;  // "file:line" of a barrier or fence to leave out
};
Machine& machine();

// The "file:line" of every barrier and fence executed so far, null-terminated.
const char* const* executed_sites();

// Copies that the running thread has begun and not waited for.
struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};
void begin_copy(const Copy& copy);
const Copy* take_copy();  // the oldest, or null

// `asked` for more shared memory than a block gets without.
void run(std::int64_t blocks, int threads, std::size_t shared_bytes, bool asked,
         void (*body)(void*), void* context);

}  // namespace simt

#define __global__
#define __launch_bounds__(...)
#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())
#define __syncthreads() ::simt::barrier(__FILE__, __LINE__)
#define __threadfence() ::simt::fence(__FILE__, __LINE__)

inline unsigned atomicInc(unsigned* counter, unsigned limit) {
  return ::simt::atomic_increment(counter, limit);
}

// Inline, so that ThreadSanitizer sees it beside plain accesses.
inline unsigned atomicOr(unsigned* word, unsigned bits) {
  return __atomic_fetch_or(word, bits, __ATOMIC_RELAXED);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = ::simt::shuffle(bits, (::simt::thread_index().x ^ static_cast<unsigned>(lane_mask)) % 32);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

#define FASTDISTILL_DEVICE inline
#define FASTDISTILL_SHARED(Type, name) \
  static char name##_key;              \
  Type& name = *static_cast<Type*>(::simt::static_shared(&name##_key, sizeof(Type)))
#define FASTDISTILL_DYNAMIC_SHARED(name) \
  unsigned char* name = static_cast<unsigned char*>(::simt::dynamic_shared())

namespace fastdistill::platform {

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
float widen_float16(std::uint32_t bits);
std::uint16_t narrow_bfloat16(float value);
std::uint16_t narrow_float16(float value);
inline std::uint32_t narrow_bfloat16_pair(float first, float second) {
  return narrow_bfloat16(first) | static_cast<std::uint32_t>(narrow_bfloat16(second)) << 16;
}
inline std::uint32_t narrow_float16_pair(float first, float second) {
  return narrow_float16(first) | static_cast<std::uint32_t>(narrow_float16(second)) << 16;
}

// As ex2.approx.ftz: results below the normal numbers become 0.
inline float exp2(float value) {
  const float result = std::exp2(value);
  return result < std::numeric_limits<float>::min() ? 0.0F : result;
}

// As late as allowed, so that who reads without waiting reads what was there before.
template <int bytes>
void copy_async(void* to, const void* from) {
  simt::begin_copy({to, from, bytes});
}
inline void wait_copies() {
  while (const simt::Copy* copy = simt::take_copy()) std::memcpy(copy->to, copy->from, copy->bytes);
}
inline double load_shared_result(const double* value) { return *value; }

struct DeviceScope {
  explicit DeviceScope(int) {}
};
inline std::int64_t multiprocessors(int) { return simt::machine().multiprocessors; }
inline std::int64_t shared_bytes_per_block(int) { return simt::machine().shared_bytes_per_block; }
inline std::int64_t shared_bytes_per_multiprocessor(int) {
  return simt::machine().shared_bytes_per_multiprocessor;
}
inline void zero_async(void* memory, std::size_t bytes, void*) { std::memset(memory, 0, bytes); }
inline bool is_capturing(void*) { return false; }
inline void* allocate(std::size_t bytes) { return ::operator new(bytes); }
inline int current_device() { return 0; }

template <class... Args>
void launch(void (*kernel)(Args...), const Grid& grid, void*, const Args&... args) {
  auto body = [&] { kernel(args...); };
  simt::run(
      grid.blocks, grid.threads, static_cast<std::size_t>(grid.shared_bytes),
      grid.shared_bytes > kDynamicBytesWithoutAsking,
      [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
}

}  // namespace fastdistill::platform
