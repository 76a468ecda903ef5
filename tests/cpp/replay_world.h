// SPDX-License-Identifier: MIT
// A world for the replay's tests in which every step is a pure function of (lane, step): any row
// that comes out of a replay can be computed again, naively, and compared byte by byte.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "replay/config.h"
#include "replay/lane_storage.h"

namespace fastdistill::testing {

using replay::RowId;

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t x = a * 0x9E3779B97F4A7C15 + b * 0xBF58476D1CE4E5B9 + c + 1;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

struct World {
  static constexpr std::size_t kFrameWords = 8, kColumnBytes = 12;

  replay::ReplayConfig config;
  std::uint64_t first_step = 0;  // where every lane starts

  bool boundary(RowId r) const { return mix(r.lane, r.step, 101) % 23 == 0; }
  bool terminated(RowId r) const { return mix(r.lane, r.step, 102) % 11 == 0; }
  bool truncated(RowId r) const { return mix(r.lane, r.step, 103) % 13 == 0; }
  float reward(RowId r) const { return static_cast<float>(mix(r.lane, r.step, 104) % 64) - 32.0F; }
  std::int64_t action(RowId r) const {
    return static_cast<std::int64_t>(mix(r.lane, r.step, 105) >> 8);
  }
  // A weight says whose it is: 12 bits of the row, 12 bits of a version. Exact as a float.
  std::uint32_t weight(RowId r, std::uint64_t version) const {
    return owner_bits(r) << 12 | static_cast<std::uint32_t>(version & 0xFFF);
  }
  std::uint32_t owner_bits(RowId r) const {
    return static_cast<std::uint32_t>(mix(r.lane, r.step, 106) % 4095) + 1;
  }
  static float priority(std::uint32_t weight) { return static_cast<float>(weight) / (1 << 20); }

  void frame(RowId r, std::uint64_t* words) const {
    for (std::size_t w = 0; w < kFrameWords; ++w) words[w] = mix(r.lane, r.step, w);
  }
  void column(RowId r, unsigned char* bytes) const {
    for (std::size_t i = 0; i < kColumnBytes; ++i) {
      bytes[i] = static_cast<unsigned char>(mix(r.lane, r.step, 200 + i));
    }
  }
  bool begins_episode(RowId r) const {
    return r.step == first_step || boundary({r.lane, r.step - 1});
  }
};

// Appends the next step of some lanes.
template <class Replay>
class WorldWriter {
 public:
  WorldWriter(const World& world, Replay& replay, std::vector<std::int64_t> lanes)
      : world_(world), replay_(replay), lanes_(std::move(lanes)) {}

  void append() {
    const std::size_t n = lanes_.size();
    std::vector<std::uint64_t> frames(n * World::kFrameWords);
    std::vector<unsigned char> columns(n * World::kColumnBytes);
    std::vector<std::int64_t> action(n);
    std::vector<float> reward(n), priority(n);
    const auto flags = std::make_unique<bool[]>(3 * n);
    for (std::size_t i = 0; i < n; ++i) {
      const auto lane = static_cast<std::uint32_t>(lanes_[i]);
      const RowId row{lane, replay_.storage().lane(lane).end.load(std::memory_order_relaxed)};
      world_.frame(row, &frames[i * World::kFrameWords]);
      world_.column(row, &columns[i * World::kColumnBytes]);
      action[i] = world_.action(row);
      reward[i] = world_.reward(row);
      priority[i] = World::priority(world_.weight(row, 0));
      flags[i] = world_.terminated(row);
      flags[n + i] = world_.truncated(row);
      flags[2 * n + i] = world_.boundary(row);
    }
    replay_.append({.lanes = lanes_,
                    .frame = reinterpret_cast<const std::byte*>(frames.data()),
                    .action = action.data(),
                    .reward = reward.data(),
                    .terminated = flags.get(),
                    .truncated = flags.get() + n,
                    .boundary = flags.get() + 2 * n,
                    .priority = priority.data(),
                    .columns = {reinterpret_cast<const std::byte*>(columns.data())}});
  }
  std::size_t lanes() const { return lanes_.size(); }

 private:
  const World& world_;
  Replay& replay_;
  std::vector<std::int64_t> lanes_;
};

// Memory for a batch, and the naive check of its rows.
class WorldBatch {
 public:
  WorldBatch(const World& world, std::size_t rows)
      : world_(world),
        stack_words_(world.config.stack * World::kFrameWords),
        obs_(rows * stack_words_),
        next_obs_(rows * stack_words_),
        column_(rows * World::kColumnBytes),
        action_(rows),
        task_(rows),
        reward_(rows),
        discount_(rows),
        weight_(rows),
        ids(rows) {
    out.obs = reinterpret_cast<std::byte*>(obs_.data());
    out.next_obs = reinterpret_cast<std::byte*>(next_obs_.data());
    out.action = action_.data();
    out.id = ids.data();
    out.task = task_.data();
    out.reward = reward_.data();
    out.discount = discount_.data();
    out.weight = weight_.data();
    out.columns = {reinterpret_cast<std::byte*>(column_.data())};
  }

  void check_rows() const {
    for (std::size_t i = 0; i < ids.size(); ++i) check_row(i);
  }

 private:
  void check_row(std::size_t i) const {
    const RowId row = replay::decode_id(ids[i]);
    CHECK(!world_.boundary(row));
    double reward = 0.0, discount = 1.0;
    RowId last = row;
    for (std::uint32_t k = 1;; ++k) {
      reward += discount * world_.reward(last);
      discount *= world_.config.discount;
      const RowId next{row.lane, row.step + k};
      const bool cut = world_.terminated(last) || world_.truncated(last);
      if (world_.terminated(last)) discount = 0.0;
      last = next;
      if (cut || world_.boundary(next) || k == world_.config.n_step) break;
    }
    CHECK_EQ(action_[i], world_.action(row));
    CHECK_EQ(reward_[i], static_cast<float>(reward));
    CHECK_EQ(discount_[i], static_cast<float>(discount));
    CHECK(weight_[i] > 0.0F && weight_[i] <= 1.0F);
    check_stack(row, &obs_[i * stack_words_]);
    check_stack(last, &next_obs_[i * stack_words_]);
    unsigned char column[World::kColumnBytes];
    world_.column(row, column);
    CHECK(std::memcmp(column, &column_[i * World::kColumnBytes], sizeof column) == 0);
  }
  void check_stack(RowId row, const std::uint64_t* words) const {
    bool before_start = false;
    for (std::uint32_t back = 0; back < world_.config.stack; ++back) {
      const RowId at{row.lane, row.step - back};
      std::uint64_t expected[World::kFrameWords] = {};
      if (!before_start) world_.frame(at, expected);
      const auto* got = words + (world_.config.stack - 1 - back) * World::kFrameWords;
      CHECK(std::memcmp(got, expected, sizeof expected) == 0);
      before_start = before_start || world_.begins_episode(at);
    }
  }

  const World& world_;
  std::size_t stack_words_;
  std::vector<std::uint64_t> obs_, next_obs_;
  std::vector<unsigned char> column_;
  std::vector<std::int64_t> action_, task_;
  std::vector<float> reward_, discount_, weight_;

 public:
  std::vector<std::int64_t> ids;
  replay::BatchOut out;
};

inline World small_world(std::uint32_t lanes, std::uint64_t lane_capacity_steps) {
  World world;
  world.config = {.lane_capacity_steps = lane_capacity_steps,
                  .num_lanes = lanes,
                  .lanes_per_task = {lanes},
                  .frame_bytes = 8 * World::kFrameWords,
                  .column_bytes = {World::kColumnBytes},
                  .stack = 3,
                  .n_step = 3,
                  .discount = 0.5,
                  .repeat_first_frame = false,
                  .samplers = {{.priority_exponent = 1.0,
                                .initial_priority = replay::InitialPriority::kMax,
                                .fixed_initial_priority = 1.0F}},
                  .seed = 7};
  return world;
}

// Moves empty lanes to a first step, for tests of counters that wrap.
template <class Replay>
void start_lanes_at(World& world, Replay& replay, std::uint64_t step) {
  world.first_step = step;
  for (std::uint32_t i = 0; i < world.config.num_lanes; ++i) {
    auto& lane = replay.storage().lane(i);
    lane.begin.store(step, std::memory_order_relaxed);
    lane.end.store(step, std::memory_order_relaxed);
    lane.floor.store(step, std::memory_order_relaxed);
    lane.tracker = replay::WindowTracker(step);
  }
}

}  // namespace fastdistill::testing
