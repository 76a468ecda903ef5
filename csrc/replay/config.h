// SPDX-License-Identifier: MIT
// What a replay is made of: its options, checked once, and the byte layout that follows from them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/cache_line.h"

namespace fastdistill::replay {

// Priority of a row whose append named none.
enum class InitialPriority {
  kMax,      // the largest ever given, 1 at first (Schaul et al. 2015)
  kMaxLive,  // about the largest among live rows: follows it down again
  kFixed,    // SamplerConfig::fixed_initial_priority
};

struct SamplerConfig {
  double priority_exponent = 0.6;
  InitialPriority initial_priority = InitialPriority::kMax;
  float fixed_initial_priority = 1.0F;
};

struct ReplayConfig {
  std::uint64_t lane_capacity_steps = 0;  // the last so many steps of a lane can be sampled
  std::uint32_t num_lanes = 1;
  std::vector<std::uint32_t> lanes_per_task;  // adds up to num_lanes
  std::size_t frame_bytes = 0;
  std::vector<std::size_t> column_bytes;
  std::uint32_t stack = 1;
  std::uint32_t n_step = 1;
  double discount = 0.99;
  bool repeat_first_frame = false;  // pad stacks with the episode's first frame, not with zeros
  std::vector<SamplerConfig> samplers;
  std::uint64_t seed = 0;
};

// A row's id: lane in the upper bits, the lane's step counter below; positive as int64.
inline constexpr int kStepBits = 48;
inline constexpr std::uint64_t kStepMask = (std::uint64_t{1} << kStepBits) - 1;
inline constexpr std::uint32_t kMaxLanes = 1U << 15;

struct RowId {
  std::uint32_t lane;
  std::uint64_t step;
};

inline std::int64_t encode_id(RowId row) noexcept {
  return static_cast<std::int64_t>((std::uint64_t{row.lane} << kStepBits) | row.step);
}

inline RowId decode_id(std::int64_t id) noexcept {
  const auto bits = static_cast<std::uint64_t>(id);
  return {static_cast<std::uint32_t>(bits >> kStepBits), bits & kStepMask};
}

// One step of one lane as it lies in memory, between the frame and the columns.
struct StepRecord {
  std::int64_t action;
  float reward;
  float priority;             // asked for at append; NaN: the sampler's initial priority
  std::uint16_t age;          // steps since the episode's first, saturating
  std::uint8_t terminated;    // the return ends here
  std::uint8_t truncated;     // the return is cut here and goes on from the next row's observation
  std::uint8_t boundary;      // the frame is an episode's final observation; never a start
  std::uint8_t padding[3];
};
static_assert(sizeof(StepRecord) == 24, "read and written as three words");

inline constexpr std::uint32_t kMaxStack = 255;
inline constexpr std::uint32_t kMaxNStep = 255;
inline constexpr std::uint16_t kMaxAge = 65535;  // more than any stack, which is all age is for

// A slot holds one step: frame, record, columns, in whole cache lines.
struct SlotLayout {
  std::size_t record_offset = 0;
  std::vector<std::size_t> column_offsets;
  std::size_t slot_bytes = 0;
  std::uint64_t slots_per_lane = 0;  // capacity and the history of the oldest row's stack
  std::uint64_t leaves_per_lane = 0;

  explicit SlotLayout(const ReplayConfig& config);
};

// Throws std::invalid_argument unless every option is in range.
void validate(const ReplayConfig& config);

// Memory of a full replay in bytes, all of it allocated by the constructor and taken by use.
std::size_t required_bytes(const ReplayConfig& config);

}  // namespace fastdistill::replay
