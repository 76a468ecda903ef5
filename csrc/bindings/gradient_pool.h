// SPDX-License-Identifier: MIT
// Memory for large gradients on the CPU, recycled from step to step. malloc gives large blocks back
// to the system as soon as they are freed; touching fresh pages again in every step then costs more
// than the loss itself. The pool keeps a few freed blocks instead, as torch's CUDA allocator does.
#pragma once

#include <cstddef>

namespace fastdistill {

// Smaller blocks come from malloc, which recycles them itself.
inline constexpr std::size_t kMinPooledBytes = std::size_t{1} << 20;

struct PoolBlock {
  void* data = nullptr;
  std::size_t bytes = 0;
};

// Any thread may take and give back.
PoolBlock take_from_pool(std::size_t bytes);
void give_to_pool(PoolBlock block);

// What the pool holds for reuse at the moment.
std::size_t pooled_bytes();

}  // namespace fastdistill
