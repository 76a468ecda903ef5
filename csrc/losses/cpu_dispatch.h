// SPDX-License-Identifier: MIT
// The losses on the CPU: chooses the instruction set once, splits rows over threads, and adds the
// parts in a fixed order, so that a result never depends on the number of threads.
#pragma once

#include <cstdint>

#include "losses/loss_args.h"

namespace fastdistill {

// Bytes at the start of a row's scratch array are aligned for every vector width.
constexpr std::int64_t wide_row_elements(std::int64_t actions) { return (actions + 15) / 16 * 16; }
constexpr int kWideRowArrays = 6;
constexpr int kBucketArrays = 5;

void distill_cpu(const DistillArgs& args);

// What is wrong with the values or indices of a row; the results are of no use then.
enum class TopkFault : int { kNone, kOutOfRange, kRepeated, kMass };
struct TopkFinding {
  TopkFault fault = TopkFault::kNone;
  std::int64_t row = 0;
  std::int64_t index = 0;  // the action that is out of range or repeated
};

TopkFinding topk_cpu(const TopkArgs& args);

// Returns -1, or the first row whose action is outside [0, actions); then nothing was written.
std::int64_t td_cpu(const TdArgs& args);

// "baseline", "avx2" or "avx512": the best this CPU runs, or what FASTDISTILL_CPU asks for.
// Throws std::invalid_argument where the CPU cannot run what was asked for.
const char* cpu_isa();

}  // namespace fastdistill
