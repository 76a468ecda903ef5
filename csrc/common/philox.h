// SPDX-License-Identifier: MIT
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a random
// function of (key, counter). It has no state, so threads share nothing and a draw can be named by
// what it is for (call, row, attempt) and repeated.
#pragma once

#include <array>
#include <cstdint>

namespace fastdistill {

// Four independent uniform 32-bit words for one counter.
inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                               std::array<std::uint32_t, 2> key) noexcept {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter[0];
    const std::uint64_t product1 = kMultiplier1 * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// One uniform 64-bit word for (seed; stream, row, attempt).
inline std::uint64_t philox_u64(std::uint64_t seed, std::uint64_t stream, std::uint32_t row,
                                std::uint32_t attempt) noexcept {
  const auto words = philox4x32({static_cast<std::uint32_t>(stream),
                                 static_cast<std::uint32_t>(stream >> 32), row, attempt},
                                {static_cast<std::uint32_t>(seed),
                                 static_cast<std::uint32_t>(seed >> 32)});
  return (static_cast<std::uint64_t>(words[1]) << 32) | words[0];
}

}  // namespace fastdistill
