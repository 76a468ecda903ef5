// SPDX-License-Identifier: MIT
// How a batch is drawn: positions on the line of weights, one descent per position, all descents
// of a batch level by level, and what is drawn again when a row was lost on the way.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/philox.h"
#include "replay/replay.h"

namespace fastdistill::replay {

__extension__ using Uint128 = unsigned __int128;

// floor(u / 2^64 * range): uniform in [0, range) for uniform u.
inline std::uint64_t scale_to(std::uint64_t u, std::uint64_t range) noexcept {
  return static_cast<std::uint64_t>((Uint128{u} * range) >> 64);
}

// The line that positions are drawn on: one interval per task, as wide as the sum of its weights
// or, with task_weights, as wide as asked.
template <class Sync>
class TaskLine {
 public:
  struct Share {
    std::int64_t width = 0;   // on the line
    std::int64_t sum = 0;     // of the task's weights
    double mean_scale = 0.0;  // weight * mean_scale = weight / mean weight
  };

  TaskLine(const PriorityIndex<Sync>& index, std::span<const TaskRows> rows,
           const std::vector<double>& task_weights)
      : shares_(index.num_tasks()) {
    for (std::size_t t = 0; t < shares_.size(); ++t) {
      shares_[t].sum = index.task(t).tree.total();
      shares_[t].width = shares_[t].sum;
    }
    if (task_weights.empty()) {
      set_width();
      std::int64_t all = 0;
      for (const TaskRows& task : rows) all += task.live.load(std::memory_order_relaxed);
      for (Share& share : shares_)
        share.mean_scale = at_least_one(all) / static_cast<double>(width_);
    } else {
      set_shares(task_weights);
      for (std::size_t t = 0; t < shares_.size(); ++t) {
        if (shares_[t].width > 0) {
          shares_[t].mean_scale = at_least_one(rows[t].live.load(std::memory_order_relaxed)) /
                                  static_cast<double>(shares_[t].sum);
        }
      }
    }
  }

  std::uint64_t width() const noexcept { return width_; }
  const Share& share(std::size_t task) const noexcept { return shares_[task]; }
  std::size_t num_tasks() const noexcept { return shares_.size(); }

  // The task at `position` of the line; what is left of it becomes a position in the task's tree.
  std::uint32_t locate(std::uint64_t position, std::int64_t& remainder) const noexcept {
    std::uint32_t task = 0;
    while (position >= static_cast<std::uint64_t>(shares_[task].width)) {
      position -= static_cast<std::uint64_t>(shares_[task++].width);
    }
    const auto sum = static_cast<std::uint64_t>(shares_[task].sum);
    const auto width = static_cast<std::uint64_t>(shares_[task].width);
    remainder = static_cast<std::int64_t>(
        sum == width ? position : static_cast<std::uint64_t>(Uint128{position} * sum / width));
    return task;
  }

 private:
  // A positive sum may be seen before the count of its rows: weights must be finite all the same.
  static double at_least_one(std::int64_t rows) noexcept {
    return static_cast<double>(std::max<std::int64_t>(rows, 1));
  }

  void set_width() {
    std::int64_t width = 0;
    for (const Share& share : shares_) width += share.width;
    if (width <= 0) {
      throw std::runtime_error(
          "sample: the buffer must hold a sampleable row of priority > 0, got none; a row can be "
          "sampled n_step steps after it was appended");
    }
    width_ = static_cast<std::uint64_t>(width);
  }

  void set_shares(const std::vector<double>& weights) {
    double sum = 0.0;
    for (const double weight : weights) {
      if (!(weight >= 0.0) || std::isinf(weight)) {
        throw std::invalid_argument("sample: task_weights must be finite and >= 0, got " +
                                    std::to_string(weight));
      }
      sum += weight;
    }
    if (weights.size() != shares_.size() || !(sum > 0.0) || std::isinf(sum)) {
      throw std::invalid_argument(
          "sample: task_weights must hold " + std::to_string(shares_.size()) +
          " weights with a positive sum, got " + std::to_string(weights.size()) + " with sum " +
          std::to_string(sum));
    }
    for (std::size_t t = 0; t < weights.size(); ++t) {
      shares_[t].width = std::llround(weights[t] / sum * 0x1p61);
      if (shares_[t].width > 0 && shares_[t].sum <= 0) {
        throw std::runtime_error(
            "sample: task_weights must be 0 for a task without sampleable rows, got " +
            std::to_string(weights[t]) + " for task " + std::to_string(t));
      }
    }
    set_width();
  }

  std::vector<Share> shares_;
  std::uint64_t width_ = 0;
};

template <class Sync>
struct Replay<Sync>::Draw {
  typename SumTree<Sync>::Descent descent;
  std::uint32_t task = 0;
  std::uint32_t row = 0;  // place in the batch
};

// Attempts of a row: first within its stratum, then anywhere, then by scans of the leaves. Each
// stage answers a fault of the one before: a stratum whose rows all died, and inner nodes off for
// as long as a thread is stopped between its changes.
inline constexpr std::uint32_t kStratumAttempts = 8;
inline constexpr std::uint32_t kDescentAttempts = 64;
inline constexpr std::uint32_t kAttempts = 128;

template <class Sync>
void Replay<Sync>::sample(std::size_t sampler, std::size_t num_rows, const SampleOptions& options,
                          const BatchOut& out) {
  PriorityIndex<Sync>& index = *indexes_[sampler];
  // Each sampler has a stream of its own: what one draws does not depend on the others' calls.
  const std::uint64_t call = index.take_call() | std::uint64_t{sampler} << 48U;
  thread_local std::vector<Draw> draws;
  thread_local std::vector<double> ratios;  // weight / mean weight, per row
  ratios.resize(num_rows);
  draws.resize(num_rows);
  for (std::size_t i = 0; i < num_rows; ++i) draws[i].row = static_cast<std::uint32_t>(i);

  for (std::uint32_t attempt = 0; !draws.empty(); ++attempt) {
    if (attempt == kAttempts) {
      throw std::runtime_error("sample: rows must stay for the time of a copy, got " +
                               std::to_string(kAttempts) +
                               " redraws; the buffer is too small for the speed of its writers");
    }
    const TaskLine<Sync> line(index, task_rows_, options.task_weights);
    const bool stratified = options.stratified && attempt < kStratumAttempts;
    for (Draw& draw : draws) {
      const std::uint64_t u = philox_u64(seed_, call, draw.row, attempt);
      // Row i of B stands at (i + u / 2^64) * width / B, rounded down once, so that over a batch
      // every unit of the line is equally likely even if the width is no multiple of B.
      const std::uint64_t position =
          stratified
              ? static_cast<std::uint64_t>(
                    (Uint128{draw.row} * line.width() + scale_to(u, line.width())) / num_rows)
              : scale_to(u, line.width());
      draw.descent = {};
      draw.task = line.locate(position, draw.descent.remainder);
      if (attempt >= kDescentAttempts) {
        const auto& tree = index.task(draw.task).tree;
        const auto total = static_cast<std::uint64_t>(tree.scan_total());
        // A word of its own, of an attempt that is never made: u has chosen the task, so within the
        // task u is no longer uniform.
        const std::uint64_t v = philox_u64(seed_, call, draw.row, kAttempts + attempt);
        draw.descent = tree.scan_pick(static_cast<std::int64_t>(scale_to(v, total)));
        Sync::fetch_add(index.counters().scans, 1U, std::memory_order_relaxed);
      }
    }
    if (attempt < kDescentAttempts) descend(index, draws);

    std::size_t lost = 0;
    thread_local std::vector<RowId> rows;
    rows.resize(draws.size());
    for (std::size_t d = 0; d < draws.size(); ++d) {
      if (!resolve(index, draws[d], rows[d])) {
        draws[d].descent.lost = true;
      } else {
        storage_.prefetch_records(rows[d]);
      }
    }
    for (std::size_t d = 0; d < draws.size(); ++d) {
      const Draw& draw = draws[d];
      if (d + 1 < draws.size() && !draws[d + 1].descent.lost) storage_.prefetch_stack(rows[d + 1]);
      if (draw.descent.lost || !storage_.read(rows[d], draw.row, out)) {
        draws[lost++] = draw;
        continue;
      }
      out.task[draw.row] = draw.task;
      ratios[draw.row] = leaf_weight(draw.descent.leaf_word) * line.share(draw.task).mean_scale;
    }
    draws.resize(lost);
    if (lost > 0) Sync::fetch_add(index.counters().redraws, lost, std::memory_order_relaxed);
  }
  normalize(index, options, ratios, out.weight);
}

template <class Sync>
void Replay<Sync>::descend(PriorityIndex<Sync>& index, std::vector<Draw>& draws) noexcept {
  std::size_t levels = 0;
  for (std::size_t t = 0; t < index.num_tasks(); ++t) {
    levels = std::max(levels, index.task(t).tree.num_levels());
  }
  for (std::size_t level = levels; level-- > 0;) {
    for (Draw& draw : draws) {
      const SumTree<Sync>& tree = index.task(draw.task).tree;
      if (level < tree.num_levels()) tree.pick_node(level, draw.descent);
    }
  }
  for (Draw& draw : draws) index.task(draw.task).tree.pick_leaf(draw.descent);
}

// The row behind a leaf: the tag must belong to the lap that the lane's cursor gives the slot.
template <class Sync>
bool Replay<Sync>::resolve(PriorityIndex<Sync>& index, const Draw& draw,
                           RowId& row) const noexcept {
  if (draw.descent.lost) return false;
  const std::uint64_t leaves = storage_.layout().leaves_per_lane;
  const std::uint64_t slots = storage_.layout().slots_per_lane;
  row.lane = index.first_lane(draw.task) + static_cast<std::uint32_t>(draw.descent.node / leaves);
  const std::uint64_t slot = draw.descent.node % leaves;
  const std::uint64_t last = storage_.lane(row.lane).end.load(std::memory_order_acquire) - 1;
  const std::uint64_t last_slot = storage_.slot_of(last);
  const std::uint64_t back = last_slot >= slot ? last_slot - slot : last_slot + slots - slot;
  row.step = last - back;
  return leaf_tag(draw.descent.leaf_word) == live_tag(storage_.lap_of(row.step));
}

// Importance weights (mean weight / weight)^exponent = (N P)^-exponent, over the largest.
template <class Sync>
void Replay<Sync>::normalize(PriorityIndex<Sync>& index, const SampleOptions& options,
                             std::span<const double> ratios, float* weights) const {
  double smallest = 1.0;
  if (options.normalization == WeightNormalization::kBatch) {
    smallest = *std::min_element(ratios.begin(), ratios.end());
  } else if (options.normalization == WeightNormalization::kGlobal) {
    const TaskLine<Sync> line(index, task_rows_, options.task_weights);
    smallest = std::numeric_limits<double>::infinity();
    for (std::size_t t = 0; t < line.num_tasks(); ++t) {
      const std::uint32_t least = index.task(t).census.smallest();
      if (line.share(t).width > 0 && least > 0) {
        smallest = std::min(smallest, least * line.share(t).mean_scale);
      }
    }
  }
  const auto exponent = static_cast<float>(-options.importance_exponent);
  for (std::size_t i = 0; i < ratios.size(); ++i) {
    weights[i] = std::pow(static_cast<float>(ratios[i] / smallest), exponent);
    // Priorities may have changed between the draw and the look at the smallest.
    if (options.normalization == WeightNormalization::kGlobal) {
      weights[i] = std::min(weights[i], 1.0F);
    }
  }
}

}  // namespace fastdistill::replay
