// SPDX-License-Identifier: MIT
// The unit in which cores exchange memory: words written by different threads keep this distance.
// A constant rather than std::hardware_destructive_interference_size, whose value may differ
// between two files of one build.
#pragma once

#include <cstddef>

namespace fastdistill {

inline constexpr std::size_t kCacheLineBytes = 64;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace fastdistill
