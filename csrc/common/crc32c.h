// SPDX-License-Identifier: MIT
// CRC-32C (Castagnoli), eight bytes per step: it finds every flip of up to three bits and every
// burst of up to 32 in a snapshot's block, and runs faster than the disk behind it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastdistill {

// The checksum of `size` more bytes after those that gave `crc`; start with 0.
std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t crc = 0) noexcept;

}  // namespace fastdistill
