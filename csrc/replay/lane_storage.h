// SPDX-License-Identifier: MIT
// The rows: one ring of slots per lane, each with one writer, and a seqlock made of two cursors.
// Every frame is stored once; stacks and n-step windows are put together when a row is read.
// This file knows time within a lane; it knows nothing of priorities.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "common/huge_array.h"
#include "replay/config.h"
#include "replay/sync.h"

namespace fastdistill::replay {

// Where one batch goes. Arrays of num_rows; frames [num_rows][stack] x frame_bytes.
struct BatchOut {
  std::byte* obs = nullptr;
  std::byte* next_obs = nullptr;  // null: not wanted
  std::int64_t* action = nullptr;
  std::int64_t* id = nullptr;
  std::int64_t* task = nullptr;
  float* reward = nullptr;
  float* discount = nullptr;
  float* weight = nullptr;
  std::vector<std::byte*> columns;
};

// One step of one lane on its way in.
struct StepIn {
  const std::byte* frame = nullptr;
  std::int64_t action = 0;
  float reward = 0.0F;
  float priority = 0.0F;
  bool terminated = false;
  bool truncated = false;
  bool boundary = false;
  std::vector<const std::byte*> columns;
};

// Which rows become complete as steps arrive: the part of a lane only its writer knows. A row is
// complete when the observation its return bootstraps from has come: n steps later, or at the step
// after the first that ended or cut the return.
class WindowTracker {
 public:
  struct Completed {
    std::uint64_t first, last;  // rows [first, last)
  };

  std::uint16_t age() const noexcept { return age_; }

  // Takes note of `step`, which follows the one noted before.
  Completed arrive(std::uint64_t step, const StepRecord& record, std::uint32_t n_step) noexcept {
    Completed done{pending_, pending_};
    if (cut_ || record.boundary) {
      done.last = step;
    } else if (pending_ + n_step <= step) {
      done.last = step - n_step + 1;
    }
    pending_ = record.boundary ? step + 1 : done.last;
    cut_ = !record.boundary && (record.terminated || record.truncated);
    age_ = record.boundary ? 0 : static_cast<std::uint16_t>(std::min<int>(age_ + 1, kMaxAge));
    return done;
  }

  WindowTracker() = default;
  explicit WindowTracker(std::uint64_t step, std::uint16_t age = 0) : pending_(step), age_(age) {}

 private:
  std::uint64_t pending_ = 0;  // rows before this one are complete
  std::uint16_t age_ = 0;      // of the next step
  bool cut_ = false;           // the last step ended or cut the return
};

struct alignas(2 * kCacheLineBytes) Lane {
  // Read by everybody, written by the lane's writer.
  std::atomic<std::uint64_t> begin{0};  // steps whose slots are, or were, being written
  std::atomic<std::uint64_t> end{0};    // steps published; begin is end, or one more in an append
  std::atomic<std::uint64_t> floor{0};  // steps before this were cleared
  // The writer's own.
  alignas(kCacheLineBytes) std::atomic<bool> has_writer{false};
  WindowTracker tracker;
};

// Steps [first, end) of a lane.
struct LaneRun {
  std::uint64_t first = 0, end = 0;
};

// What a lane held at one instant of the call, while its writer appends and clears. `Cursors` is
// Lane, or a test's, whose loads let a writer go on in front of them.
template <class Cursors>
LaneRun held_steps(const Cursors& lane, std::uint64_t slots_per_lane) noexcept {
  // `end` first: a step behind a clear is published (G) after the clear's floor was, so whoever
  // counts the step sees that floor, and no run goes across a clear, where ages begin anew.
  const std::uint64_t end = lane.end.load(std::memory_order_acquire);
  const std::uint64_t floor = lane.floor.load(std::memory_order_acquire);
  const std::uint64_t first = std::max(end - std::min(end, slots_per_lane), floor);
  // A floor above `end` is of a clear between the two loads, which left the lane empty.
  return {.first = first, .end = std::max(end, first)};
}

template <class Sync>
class LaneStorage {
 public:
  explicit LaneStorage(const ReplayConfig& config)
      : config_(config),
        layout_(config),
        lanes_(std::make_unique<Lane[]>(config.num_lanes)),
        slots_(config.num_lanes * layout_.slots_per_lane * layout_.slot_bytes) {
    discounts_.push_back(1.0);
    for (std::uint32_t k = 0; k < config.n_step; ++k) {
      discounts_.push_back(discounts_.back() * config.discount);
    }
  }

  const ReplayConfig& config() const noexcept { return config_; }
  const SlotLayout& layout() const noexcept { return layout_; }
  Lane& lane(std::uint32_t i) const noexcept { return lanes_[i]; }
  std::byte* memory() const noexcept { return slots_.data(); }

  std::uint64_t slot_of(std::uint64_t step) const noexcept { return step % layout_.slots_per_lane; }
  std::uint64_t lap_of(std::uint64_t step) const noexcept { return step / layout_.slots_per_lane; }
  std::byte* slot(std::uint32_t lane, std::uint64_t slot) const noexcept {
    return slots_.data() + (lane * layout_.slots_per_lane + slot) * layout_.slot_bytes;
  }

  // The lane's writer: puts step `step` into its slot and publishes it.
  StepRecord write(std::uint32_t lane_index, std::uint64_t step, const StepIn& in) noexcept {
    Lane& lane = lanes_[lane_index];
    const StepRecord record{.action = in.action,
                            .reward = in.reward,
                            .priority = in.priority,
                            .age = lane.tracker.age(),
                            .terminated = in.terminated,
                            .truncated = in.truncated,
                            .boundary = in.boundary,
                            .padding = {}};
    std::byte* const at = slot(lane_index, slot_of(step));
    // (A) announced before the first byte changes; pairs with (F) in intact().
    Sync::store(lane.begin, step + 1, std::memory_order_relaxed);
    begin_shared_writes(layout_.slot_bytes);
    Sync::write_shared(at, in.frame, config_.frame_bytes);
    Sync::write_record(at + layout_.record_offset, &record, sizeof record);
    for (std::size_t c = 0; c < in.columns.size(); ++c) {
      Sync::write_shared(at + layout_.column_offsets[c], in.columns[c], config_.column_bytes[c]);
    }
    // (G) release, pairs with the acquire loads of `end`: the step is there to be read.
    Sync::store(lane.end, step + 1, std::memory_order_release);
    return record;
  }

  StepRecord record(std::uint32_t lane, std::uint64_t slot_index) const noexcept {
    StepRecord record;
    read_record(lane, slot_index, record);
    return record;
  }

  // Whether no byte of the steps from `oldest` on was written over since they were published. To
  // be asked after the bytes were copied and finish_shared_reads().
  bool intact(std::uint32_t lane, std::int64_t oldest) const noexcept {
    // (F) had a copied byte been newer, this load would see its announcement (A).
    const auto begin =
        static_cast<std::int64_t>(lanes_[lane].begin.load(std::memory_order_acquire));
    return oldest + static_cast<std::int64_t>(layout_.slots_per_lane) >= begin;
  }

  // Asks the memory for what read() of a row touches first, so that a batch waits once for all.
  void prefetch_records(RowId row) const noexcept {
    const std::uint64_t start = slot_of(row.step);
    for (std::uint32_t j = 0; j <= config_.n_step; ++j) {
      __builtin_prefetch(slot(row.lane, slot_ahead(start, j)) + layout_.record_offset);
    }
  }
  // Asks for the oldest frame of a row's stack.
  void prefetch_stack(RowId row) const noexcept {
    prefetch_frame(row.lane, slot_ahead(slot_of(row.step), slots_back(config_.stack - 1)));
  }

  // Copies the transition that starts at `row`, whose window is complete, to place `i` of `out`.
  // Returns false, with that place undefined, when the writer was faster.
  bool read(RowId row, std::size_t i, const BatchOut& out) const noexcept {
    const std::uint64_t start = slot_of(row.step);
    const StepRecord first = record(row.lane, start);
    StepRecord next;
    double reward = first.reward;
    bool terminated = first.terminated, truncated = first.truncated;
    std::uint32_t steps = 1;
    read_record(row.lane, slot_ahead(start, steps), next);
    while (steps < config_.n_step && !terminated && !truncated && !next.boundary) {
      reward += discounts_[steps] * next.reward;
      terminated = next.terminated;
      truncated = next.truncated;
      read_record(row.lane, slot_ahead(start, ++steps), next);
    }

    const std::size_t stack_bytes = config_.stack * config_.frame_bytes;
    read_stack(row.lane, start, first.age, out.obs + i * stack_bytes);
    if (out.next_obs != nullptr) {
      read_stack(row.lane, slot_ahead(start, steps), next.age, out.next_obs + i * stack_bytes);
    }
    std::byte* const at = slot(row.lane, start);
    for (std::size_t c = 0; c < out.columns.size(); ++c) {
      read_shared(out.columns[c] + i * config_.column_bytes[c], at + layout_.column_offsets[c],
                  config_.column_bytes[c]);
    }
    out.action[i] = first.action;
    out.reward[i] = static_cast<float>(reward);
    out.discount[i] = terminated ? 0.0F : static_cast<float>(discounts_[steps]);
    out.id[i] = encode_id(row);
    finish_shared_reads();
    return intact(row.lane, static_cast<std::int64_t>(row.step) - (config_.stack - 1));
  }

 private:
  // Word by word into place: a copy of the whole would wait for the words' stores.
  void read_record(std::uint32_t lane, std::uint64_t slot_index,
                   StepRecord& record) const noexcept {
    std::byte* const at = slot(lane, slot_index) + layout_.record_offset;
    for (std::size_t i = 0; i < sizeof record; i += 8) {
      const std::uint64_t word = shared_word(at + i).load(std::memory_order_acquire);
      std::memcpy(reinterpret_cast<std::byte*>(&record) + i, &word, 8);
    }
  }

  // The slot `steps` later, without a division; less than a whole lap ahead.
  std::uint64_t slot_ahead(std::uint64_t slot_index, std::uint64_t steps) const noexcept {
    const std::uint64_t sum = slot_index + steps;
    return sum >= layout_.slots_per_lane ? sum - layout_.slots_per_lane : sum;
  }

  std::uint64_t slots_back(std::uint64_t steps) const noexcept {
    return layout_.slots_per_lane - steps;
  }

  // One frame ahead of the copy: the hardware prefetcher alone lets a copy of frames in memory
  // wait at every page. Worth a fifth of a sample (32 and 256 rows of 84x84; Zen 5, 2026-11).
  void prefetch_frame(std::uint32_t lane, std::uint64_t slot_index) const noexcept {
    const std::byte* const frame = slot(lane, slot_index);
    for (std::size_t at = 0; at < config_.frame_bytes; at += kCacheLineBytes) {
      __builtin_prefetch(frame + at);
    }
  }

  // The `stack` frames up to the one in a slot, which is the age-th of its episode.
  void read_stack(std::uint32_t lane, std::uint64_t slot_index, std::uint16_t age,
                  std::byte* out) const noexcept {
    const std::uint32_t history = std::min<std::uint32_t>(age, config_.stack - 1);
    const std::uint32_t missing = config_.stack - 1 - history;
    std::uint64_t at = slot_ahead(slot_index, slots_back(history));
    for (std::uint32_t plane = 0; plane < missing; ++plane, out += config_.frame_bytes) {
      if (config_.repeat_first_frame) {
        read_shared(out, slot(lane, at), config_.frame_bytes);
      } else {
        std::memset(out, 0, config_.frame_bytes);
      }
    }
    for (std::uint32_t plane = 0; plane <= history; ++plane, out += config_.frame_bytes) {
      if (plane < history) prefetch_frame(lane, slot_ahead(at, 1));
      read_shared(out, slot(lane, at), config_.frame_bytes);
      at = slot_ahead(at, 1);
    }
  }

  ReplayConfig config_;
  SlotLayout layout_;
  std::unique_ptr<Lane[]> lanes_;
  HugeArray<std::byte> slots_;
  std::vector<double> discounts_;  // discount^k
};

}  // namespace fastdistill::replay
