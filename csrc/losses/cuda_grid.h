// SPDX-License-Identifier: MIT
// The shape of a launch, for the CUDA runtime and for tests/cpp/simt alike.
#pragma once

#include <cstdint>

namespace fastdistill::platform {

// What a block gets without asking. Static shared memory counts, too: where there is dynamic, it
// is less than kStaticSharedBytes.
inline constexpr std::int64_t kSharedBytesWithoutAsking = 48 * 1024;
inline constexpr std::int64_t kStaticSharedBytes = 2 * 1024;
inline constexpr std::int64_t kDynamicBytesWithoutAsking =
    kSharedBytesWithoutAsking - kStaticSharedBytes;

// What CUDA takes for itself of a multiprocessor's shared memory, for each block.
inline constexpr std::int64_t kReservedSharedBytes = 1024;

struct Grid {
  std::int64_t blocks;
  int threads;
  std::int64_t shared_bytes;  // dynamic
};

}  // namespace fastdistill::platform
