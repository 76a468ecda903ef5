// SPDX-License-Identifier: MIT
// Checks of the replay's options and the arithmetic of its memory.
#include "replay/config.h"

#include <cmath>
#include <numeric>
#include <sstream>
#include <stdexcept>

namespace fastdistill::replay {
namespace {

template <class Value>
void require(bool holds, const char* what, const Value& got) {
  if (holds) return;
  std::ostringstream text;
  text << "PrioritizedReplay: " << what << ", got " << got;
  throw std::invalid_argument(text.str());
}

__extension__ using Uint128 = unsigned __int128;

// Memory that no address can name; what is below cannot wrap in 64 bits, whatever it is multiplied
// with here.
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 47;

}  // namespace

SlotLayout::SlotLayout(const ReplayConfig& config)
    : record_offset(round_up(config.frame_bytes, 8)),
      slots_per_lane(config.lane_capacity_steps + config.stack - 1),
      leaves_per_lane(round_up(slots_per_lane, 8)) {
  std::size_t at = record_offset + sizeof(StepRecord);
  for (const std::size_t bytes : config.column_bytes) {
    column_offsets.push_back(at);
    at += round_up(bytes, 8);
  }
  slot_bytes = round_up(at, kCacheLineBytes);
}

void validate(const ReplayConfig& config) {
  require(config.num_lanes >= 1 && config.num_lanes <= kMaxLanes, "num_lanes must be in [1, 32768]",
          config.num_lanes);
  require(config.stack >= 1 && config.stack <= kMaxStack, "stack must be in [1, 255]",
          config.stack);
  require(config.n_step >= 1 && config.n_step <= kMaxNStep, "n_step must be in [1, 255]",
          config.n_step);
  require(config.lane_capacity_steps > config.n_step,
          "capacity must give every lane more than n_step steps", config.lane_capacity_steps);
  require(config.lane_capacity_steps < (std::uint64_t{1} << 40), "capacity must be below 2^40",
          config.lane_capacity_steps);
  require(config.discount >= 0.0 && config.discount <= 1.0, "discount must be in [0, 1]",
          config.discount);
  require(config.frame_bytes >= 1, "frame_shape must hold at least one element", 0);
  Uint128 slot_bytes = config.frame_bytes;
  for (const std::size_t bytes : config.column_bytes) slot_bytes += bytes;
  require(slot_bytes <= kMaxBytes, "frame_shape and columns must take at most 2^47 bytes per step",
          static_cast<double>(slot_bytes));
  std::uint64_t lanes = 0;
  for (const std::uint32_t count : config.lanes_per_task) {
    require(count >= 1, "lanes_per_task must be positive", count);
    lanes += count;
  }
  require(lanes == config.num_lanes, "lanes_per_task must add up to num_lanes", lanes);
  require(!config.samplers.empty(), "priority_exponent must name at least one sampler", 0);
  for (const SamplerConfig& sampler : config.samplers) {
    require(sampler.priority_exponent >= 0.0 && sampler.priority_exponent <= 1.0,
            "priority_exponent must be in [0, 1]", sampler.priority_exponent);
    require(std::isfinite(sampler.fixed_initial_priority) && sampler.fixed_initial_priority > 0.0F,
            "initial_priority must be finite and > 0", sampler.fixed_initial_priority);
  }
  const SlotLayout layout(config);
  const Uint128 leaf_bytes = Uint128{16} * config.samplers.size() * layout.leaves_per_lane;
  const Uint128 total =
      config.num_lanes * (Uint128{layout.slots_per_lane} * layout.slot_bytes + leaf_bytes);
  require(total <= kMaxBytes, "capacity must need at most 2^47 bytes", static_cast<double>(total));
}

std::size_t required_bytes(const ReplayConfig& config) {
  const SlotLayout layout(config);
  const std::size_t slots = config.num_lanes * layout.slots_per_lane * layout.slot_bytes;
  // A leaf and its share of the inner nodes above it: 8 + 8/8 + 8/64 + ... bytes.
  const std::size_t tree = config.num_lanes * layout.leaves_per_lane * 64 / 7;
  return slots + tree * config.samplers.size();
}

}  // namespace fastdistill::replay
