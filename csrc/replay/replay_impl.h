// SPDX-License-Identifier: MIT
// Definitions of Replay but for sampling. Included by replay.cpp, and by tests that bring a Sync
// policy of their own.
#pragma once

#include <cmath>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "replay/replay.h"
#include "replay/sampling.h"

namespace fastdistill::replay {

template <class Sync>
Replay<Sync>::Replay(const ReplayConfig& config)
    : storage_((validate(config), config)),
      task_rows_(config.lanes_per_task.size()),
      seed_(config.seed) {
  for (const SamplerConfig& sampler : config.samplers) {
    indexes_.push_back(std::make_unique<PriorityIndex<Sync>>(config, sampler, storage_.layout()));
  }
}

template <class Sync>
Replay<Sync>::LaneClaim::LaneClaim(Replay& replay, std::span<const std::int64_t> lanes,
                                   const char* function)
    : replay_(replay), lanes_(lanes) {
  const std::string name(function);
  for (; claimed_ < lanes.size(); ++claimed_) {
    const std::int64_t lane = lanes[claimed_];
    if (lane < 0 || lane >= replay.config().num_lanes) {
      release();
      throw std::out_of_range(name + ": lanes must be in [0, " +
                              std::to_string(replay.config().num_lanes) + "), got " +
                              std::to_string(lane));
    }
    auto& has_writer = replay.storage_.lane(static_cast<std::uint32_t>(lane)).has_writer;
    if (Sync::exchange(has_writer, true, std::memory_order_acquire)) {
      release();
      throw std::invalid_argument(name + ": lanes must be distinct, each with one writer at a " +
                                  "time, got lane " + std::to_string(lane) + " twice");
    }
  }
}

template <class Sync>
void Replay<Sync>::LaneClaim::release() noexcept {
  for (; claimed_ > 0; --claimed_) {
    const auto lane = static_cast<std::uint32_t>(lanes_[claimed_ - 1]);
    Sync::store(replay_.storage_.lane(lane).has_writer, false, std::memory_order_release);
  }
}

template <class Sync>
std::vector<std::int64_t> Replay<Sync>::all_lanes() const {
  std::vector<std::int64_t> lanes(storage_.config().num_lanes);
  std::iota(lanes.begin(), lanes.end(), 0);
  return lanes;
}

namespace detail {

inline void require_priority(float priority, const char* function, std::size_t i) {
  if (priority >= 0.0F && std::isfinite(priority)) return;
  std::ostringstream text;
  text << function << ": priority must be finite and >= 0, got " << priority << " at row " << i;
  throw std::invalid_argument(text.str());
}

}  // namespace detail

template <class Sync>
void Replay<Sync>::append(const AppendIn& in) {
  if (in.priority != nullptr) {
    for (std::size_t i = 0; i < in.lanes.size(); ++i) {
      detail::require_priority(in.priority[i], "append", i);
    }
  }
  // A copy, because the caller's other threads could change theirs between the claim and its use.
  thread_local std::vector<std::int64_t> lanes;
  lanes.assign(in.lanes.begin(), in.lanes.end());
  const LaneClaim claim(*this, lanes, "append");
  StepIn step;
  step.columns.resize(in.columns.size());
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    step.frame = in.frame + i * config().frame_bytes;
    step.action = in.action[i];
    step.reward = in.reward[i];
    step.priority = in.priority != nullptr ? in.priority[i] : std::nanf("");
    step.terminated = in.terminated != nullptr && in.terminated[i];
    step.truncated = in.truncated != nullptr && in.truncated[i];
    step.boundary = in.boundary != nullptr && in.boundary[i];
    for (std::size_t c = 0; c < in.columns.size(); ++c) {
      step.columns[c] = in.columns[c] + i * config().column_bytes[c];
    }
    append_step(static_cast<std::uint32_t>(lanes[i]), step);
  }
}

template <class Sync>
void Replay<Sync>::append_step(std::uint32_t lane_index, const StepIn& in) noexcept {
  Lane& lane = storage_.lane(lane_index);
  const std::uint64_t step = lane.end.load(std::memory_order_relaxed);
  const bool has_killed =
      step >= config().lane_capacity_steps && kill(lane_index, step - config().lane_capacity_steps);
  const StepRecord record = storage_.write(lane_index, step, in);
  const auto complete = lane.tracker.arrive(step, record, config().n_step);
  // Usually one row comes as one goes, and the count that all writers share rests.
  const std::int64_t more =
      static_cast<std::int64_t>(complete.last - complete.first) - (has_killed ? 1 : 0);
  count_live(lane_index, std::max<std::int64_t>(more, 0));
  for (std::uint64_t row = complete.first; row < complete.last; ++row) {
    const float priority = storage_.record(lane_index, storage_.slot_of(row)).priority;
    for (const auto& index : indexes_) {
      index->enable(lane_index, storage_.slot_of(row), storage_.lap_of(row), priority);
    }
  }
  count_live(lane_index, std::min<std::int64_t>(more, 0));
}

template <class Sync>
bool Replay<Sync>::kill(std::uint32_t lane, std::uint64_t step) noexcept {
  bool was_live = false;
  for (const auto& index : indexes_) {
    was_live = index->kill(lane, storage_.slot_of(step), storage_.lap_of(step));
  }
  return was_live;
}

template <class Sync>
void Replay<Sync>::clear() {
  const auto lanes = all_lanes();
  const LaneClaim claim(*this, lanes, "clear");
  clear_claimed();
}

template <class Sync>
void Replay<Sync>::clear_claimed() noexcept {
  for (std::uint32_t i = 0; i < config().num_lanes; ++i) {
    Lane& lane = storage_.lane(i);
    const std::uint64_t end = lane.end.load(std::memory_order_relaxed);
    const std::uint64_t kept = std::min(end, config().lane_capacity_steps);
    std::int64_t killed = 0;
    for (std::uint64_t step = end - kept; step < end; ++step) killed += kill(i, step) ? 1 : 0;
    count_live(i, -killed);
    Sync::store(lane.floor, end, std::memory_order_release);
    lane.tracker = WindowTracker(end);
  }
}

template <class Sync>
RowId Replay<Sync>::issued_row(std::int64_t id, const char* function, std::size_t i) const {
  const RowId row = decode_id(id);
  if (id < 0 || row.lane >= config().num_lanes ||
      row.step >= storage_.lane(row.lane).end.load(std::memory_order_acquire)) {
    throw std::out_of_range(std::string(function) +
                            ": id must come from this buffer's sample(), got " +
                            std::to_string(id) + " at row " + std::to_string(i));
  }
  return row;
}

template <class Sync>
void Replay<Sync>::update(std::size_t sampler, std::span<const std::int64_t> ids,
                          std::span<const float> priorities, bool* accepted) {
  PriorityIndex<Sync>& index = *indexes_[sampler];
  thread_local std::vector<typename PriorityIndex<Sync>::Target> targets;
  targets.resize(ids.size());
  const std::uint64_t slots = storage_.layout().slots_per_lane;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    detail::require_priority(priorities[i], "update_priorities", i);
    const auto [lane, step] = issued_row(ids[i], "update_priorities", i);
    // The cursor settles what the tag, 31 bits of the lap, could in principle mistake.
    const bool recent = step + slots >= storage_.lane(lane).end.load(std::memory_order_relaxed);
    targets[i] = {lane, recent, storage_.slot_of(step), storage_.lap_of(step)};
    index.prefetch(lane, targets[i].slot);
  }
  for (std::size_t first = 0; first < ids.size(); first += kMaxUpdateRows) {
    const std::size_t rows = std::min(kMaxUpdateRows, ids.size() - first);
    index.update({&targets[first], rows}, priorities.subspan(first, rows), accepted + first);
  }
}

template <class Sync>
bool Replay<Sync>::is_live(RowId row) const noexcept {
  const std::uint64_t word = indexes_[0]->load(row.lane, storage_.slot_of(row.step));
  return leaf_tag(word) == live_tag(storage_.lap_of(row.step));
}

template <class Sync>
void Replay<Sync>::read(std::span<const std::int64_t> ids, const BatchOut& out) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const RowId row = issued_row(ids[i], "read", i);
    if (!is_live(row) || !storage_.read(row, i, out)) {
      throw std::out_of_range("read: id must name a live row, got " + std::to_string(ids[i]) +
                              " at row " + std::to_string(i));
    }
    out.task[i] = indexes_[0]->task_of(row.lane);
    out.weight[i] = 1.0F;
  }
}

template <class Sync>
std::uint64_t Replay<Sync>::live_rows() const noexcept {
  std::int64_t rows = 0;
  for (const TaskRows& task : task_rows_) rows += task.live.load(std::memory_order_relaxed);
  return static_cast<std::uint64_t>(std::max<std::int64_t>(rows, 0));
}

template <class Sync>
std::vector<RowPriority> Replay<Sync>::priorities(std::size_t sampler) const {
  const PriorityIndex<Sync>& index = *indexes_[sampler];
  std::vector<RowPriority> rows;
  for (std::uint32_t lane = 0; lane < config().num_lanes; ++lane) {
    const std::uint64_t end = storage_.lane(lane).end.load(std::memory_order_acquire);
    const std::uint64_t kept = std::min(end, config().lane_capacity_steps);
    for (std::uint64_t step = end - kept; step < end; ++step) {
      const std::uint64_t word = index.load(lane, storage_.slot_of(step));
      if (leaf_tag(word) != live_tag(storage_.lap_of(step))) continue;
      rows.push_back({encode_id({lane, step}), index.priority_of(leaf_weight(word))});
    }
  }
  return rows;
}

template <class Sync>
Statistics Replay<Sync>::statistics(std::size_t sampler) const {
  PriorityIndex<Sync>& index = *indexes_[sampler];
  const auto& counters = index.counters();
  Statistics out;
  out.live_rows = live_rows();
  for (std::uint32_t i = 0; i < config().num_lanes; ++i) {
    out.appended_steps += storage_.lane(i).end.load(std::memory_order_relaxed);
  }
  out.stale_updates = counters.stale_updates.load(std::memory_order_relaxed);
  out.clamped_weights = counters.clamped_weights.load(std::memory_order_relaxed);
  out.redraws = counters.redraws.load(std::memory_order_relaxed);
  out.scans = counters.scans.load(std::memory_order_relaxed);
  out.max_priority = index.priority_of(index.max_weight());
  return out;
}

template <class Sync>
std::string Replay<Sync>::check_valid() const {
  std::ostringstream wrong;
  for (std::size_t s = 0; s < indexes_.size(); ++s) {
    const PriorityIndex<Sync>& index = *indexes_[s];
    std::uint64_t live = 0;
    std::vector<std::array<int, WeightCensus::kBuckets>> counts(index.num_tasks());
    for (auto& task : counts) task.fill(0);
    for (std::uint32_t lane = 0; lane < config().num_lanes; ++lane) {
      for (std::uint64_t slot = 0; slot < storage_.layout().slots_per_lane; ++slot) {
        const std::uint64_t word = index.load(lane, slot);
        const bool is_live = leaf_tag(word) % 2 == 1;
        live += is_live ? 1 : 0;
        if (!is_live && leaf_weight(word) != 0) wrong << "a dead leaf has weight; ";
        if (leaf_weight(word) != 0) {
          ++counts[index.task_of(lane)][WeightCensus::bucket(leaf_weight(word))];
        }
      }
    }
    if (live != live_rows()) wrong << live << " live leaves, " << live_rows() << " counted; ";
    for (std::size_t t = 0; t < index.num_tasks(); ++t) {
      if (const std::int64_t node = index.task(t).tree.first_wrong_node(); node >= 0) {
        wrong << "inner node " << node << " of task " << t << " is not its children's sum; ";
      }
      for (std::size_t b = 0; b < WeightCensus::kBuckets; ++b) {
        if (counts[t][b] != index.task(t).census.count(b)) wrong << "census bucket " << b << "; ";
      }
    }
  }
  return wrong.str();
}

}  // namespace fastdistill::replay
