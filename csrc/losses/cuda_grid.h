// SPDX-License-Identifier: MIT
// The shape of a launch, for the CUDA runtime and for tests/cpp/simt alike.
#pragma once

#include <cstdint>

namespace fastdistill::platform {

// What a block gets without asking. Static shared memory counts, too, and what CUDA takes for
// itself; together they are less than kOtherSharedBytes.
inline constexpr std::int64_t kSharedBytesWithoutAsking = 48 * 1024;
inline constexpr std::int64_t kOtherSharedBytes = 2 * 1024;
inline constexpr std::int64_t kDynamicBytesWithoutAsking =
    kSharedBytesWithoutAsking - kOtherSharedBytes;

struct Grid {
  std::int64_t blocks;
  int threads;
  std::int64_t shared_bytes;  // dynamic
};

}  // namespace fastdistill::platform
