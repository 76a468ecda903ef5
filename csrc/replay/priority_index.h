// SPDX-License-Identifier: MIT
// One sampler's priorities over the rows of a storage: a sum tree per task, the census of weights
// that tells the smallest and largest live one, and the rules by which a leaf changes. Several
// indexes may stand over one storage, so that several students keep priorities of their own.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "replay/config.h"
#include "replay/sum_tree.h"

namespace fastdistill::replay {

// Weights are priority^exponent in steps of 2^-20, from 9.5e-7 to 4096. Integers, because then
// 2^20 rows of 2^32 add up exactly, in any order, from any number of threads.
inline constexpr float kWeightOne = 1 << 20;
inline constexpr std::uint32_t kMaxWeight = 0xFFFFFFFF;

// Rows whose leaves an update may change before the sums follow: enough to share nearly all of the
// work on the upper levels, few enough for sums to lag by microseconds.
inline constexpr std::size_t kMaxUpdateRows = 512;

// Note [Tags]
// The upper half of a leaf word says whose weight the lower half is. For the lap (step / slots) a
// lane's cursor is on, 2 lap means "not to be sampled yet", 2 lap + 1 "live", 2 lap + 2 "killed",
// which is the next lap's "not yet". Tags only grow, so a compare-and-swap that expects 2 lap + 1
// cannot touch a newer row. It wraps after 2^31 laps; update() also compares full step counters.
inline std::uint32_t live_tag(std::uint64_t lap) noexcept {
  return static_cast<std::uint32_t>(2 * lap + 1);
}

// Weights by order of magnitude, four buckets to a factor of two, with exact small ones.
class WeightCensus {
 public:
  static constexpr std::size_t kBuckets = 128;

  static std::size_t bucket(std::uint32_t weight) noexcept {
    const int exponent = 31 - std::countl_zero(weight);
    const std::uint32_t mantissa =
        exponent >= 2 ? weight >> (exponent - 2) : weight << (2 - exponent);
    return static_cast<std::size_t>(4 * exponent) + (mantissa & 3);
  }
  static std::uint32_t floor_of(std::size_t bucket) noexcept {
    const auto mantissa = static_cast<std::uint32_t>(4 | (bucket & 3));
    const std::size_t exponent = bucket / 4;
    return exponent >= 2 ? mantissa << (exponent - 2) : mantissa >> (2 - exponent);
  }
  static std::uint32_t ceiling_of(std::size_t bucket) noexcept {
    const std::size_t exponent = bucket / 4;
    return floor_of(bucket) + (exponent >= 2 ? (1U << (exponent - 2)) - 1 : 0);
  }

  template <class Sync>
  void move(std::uint32_t from, std::uint32_t to) noexcept {
    if (from != 0 && to != 0 && bucket(from) == bucket(to)) return;
    if (to != 0) Sync::fetch_add(counts_[bucket(to)], 1, std::memory_order_relaxed);
    if (from != 0) Sync::fetch_add(counts_[bucket(from)], -1, std::memory_order_relaxed);
  }
  // The same for a batch: the moves are counted in `pending`, which flush() adds and clears.
  using Pending = std::array<int, kBuckets>;
  static void move(std::uint32_t from, std::uint32_t to, Pending& pending) noexcept {
    if (to != 0) ++pending[bucket(to)];
    if (from != 0) --pending[bucket(from)];
  }
  template <class Sync>
  void flush(Pending& pending) noexcept {
    for (const int sign : {1, -1}) {  // what came before what went: live weights are never missed
      for (std::size_t i = 0; i < kBuckets; ++i) {
        if (pending[i] * sign > 0) {
          Sync::fetch_add(counts_[i], pending[i], std::memory_order_relaxed);
        }
      }
    }
    pending.fill(0);
  }
  // At most the smallest (largest: at least the greatest) live weight above zero, and within 25% of
  // it; 0 when there is none.
  std::uint32_t smallest() const noexcept {
    for (std::size_t i = 0; i < kBuckets; ++i) {
      if (count(i) > 0) return floor_of(i);
    }
    return 0;
  }
  std::uint32_t largest() const noexcept {
    for (std::size_t i = kBuckets; i-- > 0;) {
      if (count(i) > 0) return ceiling_of(i);
    }
    return 0;
  }
  int count(std::size_t i) const noexcept { return counts_[i].load(std::memory_order_relaxed); }

 private:
  std::array<std::atomic<int>, kBuckets> counts_{};
};

template <class Sync>
class PriorityIndex {
 public:
  struct alignas(kCacheLineBytes) Counters {
    std::atomic<std::uint64_t> stale_updates{0};    // refused: the row was gone
    std::atomic<std::uint64_t> clamped_weights{0};  // priority^exponent out of the weights' range
    std::atomic<std::uint64_t> redraws{0};          // rows drawn again: gone, or sums on their way
    std::atomic<std::uint64_t> scans{0};            // rows drawn by a scan, after many redraws
  };
  // Where an update goes. Not `recent`: the row left the ring, whatever the leaf's tag says.
  struct Target {
    std::uint32_t lane;
    bool recent;
    std::uint64_t slot, lap;
  };
  struct Task {
    explicit Task(std::size_t leaves) : tree(leaves) {}
    SumTree<Sync> tree;
    WeightCensus census;
  };

  PriorityIndex(const ReplayConfig& config, const SamplerConfig& options, const SlotLayout& layout)
      : options_(options), leaves_per_lane_(layout.leaves_per_lane) {
    std::uint32_t lane = 0;
    for (const std::uint32_t lanes : config.lanes_per_task) {
      first_lanes_.push_back(lane);
      tasks_.push_back(std::make_unique<Task>(lanes * leaves_per_lane_));
      task_of_lane_.insert(task_of_lane_.end(), lanes,
                           static_cast<std::uint32_t>(tasks_.size() - 1));
      lane += lanes;
    }
  }

  std::size_t num_tasks() const noexcept { return tasks_.size(); }
  Task& task(std::size_t i) const noexcept { return *tasks_[i]; }
  Counters& counters() noexcept { return counters_; }
  std::uint32_t max_weight() const noexcept { return max_weight_.load(std::memory_order_relaxed); }
  void set_max_weight(std::uint32_t weight) noexcept { Sync::store(max_weight_, weight, kRelaxed); }

  // Position in the sampler's stream of random numbers.
  std::uint64_t take_call() noexcept { return Sync::fetch_add(calls_, 1U, kRelaxed); }
  std::uint64_t calls() const noexcept { return calls_.load(kRelaxed); }
  void set_calls(std::uint64_t calls) noexcept { Sync::store(calls_, calls, kRelaxed); }

  std::uint32_t task_of(std::uint32_t lane) const noexcept { return task_of_lane_[lane]; }
  std::uint32_t first_lane(std::size_t task) const noexcept { return first_lanes_[task]; }
  std::size_t leaf_of(std::uint32_t lane, std::uint64_t slot) const noexcept {
    return (lane - first_lane(task_of(lane))) * leaves_per_lane_ + slot;
  }
  std::uint64_t load(std::uint32_t lane, std::uint64_t slot) const noexcept {
    // As (C): whoever goes on to the row of a live word sees its bytes.
    return tree_of(lane).leaf(leaf_of(lane, slot)).load(std::memory_order_acquire);
  }
  void prefetch(std::uint32_t lane, std::uint64_t slot) const noexcept {
    tree_of(lane).prefetch_leaf(leaf_of(lane, slot));
  }

  // priority^exponent as a weight, for a finite priority >= 0. Zero stays zero (the row is never
  // drawn) unless the exponent is zero, for which every row weighs the same; a tiny positive one
  // stays above zero.
  std::uint32_t weight_of(float priority) noexcept {
    const float power = raise(priority);
    // Written so that NaN fails: another thread may have written it since the caller's check.
    if (!(power > 0.0F)) return 0;
    const float steps = std::nearbyint(power * kWeightOne);
    if (steps < 1.0F) return clamp(1);
    if (steps >= 0x1p32F) return clamp(kMaxWeight);
    return static_cast<std::uint32_t>(steps);
  }
  double priority_of(std::uint32_t weight) const noexcept {
    if (options_.priority_exponent == 0.0) return 1.0;
    return std::pow(weight / static_cast<double>(kWeightOne), 1.0 / options_.priority_exponent);
  }

  // The lane's writer: the row's window is complete, sample it from now on.
  void enable(std::uint32_t lane, std::uint64_t slot, std::uint64_t lap, float priority) noexcept {
    const std::uint32_t weight = std::isnan(priority) ? initial_weight() : weight_of(priority);
    set(lane, slot, lap, weight);
    raise_max(weight);
  }
  // As enable(), with a weight already at hand (a snapshot's).
  void set(std::uint32_t lane, std::uint64_t slot, std::uint64_t lap,
           std::uint32_t weight) noexcept {
    // (B) release, pairs with (C): who sees the live word sees the row's bytes. A plain store will
    // do, for only the lane's writer changes a word that is not live. Linearization point.
    Sync::store(tree_of(lane).leaf(leaf_of(lane, slot)), leaf_word(live_tag(lap), weight),
                std::memory_order_release);
    propagate(lane, slot, 0, weight);
  }

  // The lane's writer: the row is about to lose its history. Returns whether it was live.
  bool kill(std::uint32_t lane, std::uint64_t slot, std::uint64_t lap) noexcept {
    // (D) one exchange, so no update can come between reading the weight and removing it; acq_rel,
    // so the row is dead before its bytes change. Linearization point.
    const std::uint64_t old =
        Sync::exchange(tree_of(lane).leaf(leaf_of(lane, slot)), leaf_word(live_tag(lap) + 1, 0),
                       std::memory_order_acq_rel);
    if (leaf_tag(old) != live_tag(lap)) return false;
    propagate(lane, slot, leaf_weight(old), 0);
    return true;
  }

  // Any thread: changes the weights of the rows that are still live, and says which were. The sums
  // follow when all leaves are done, so a batch should be short (kMaxUpdateRows).
  void update(std::span<const Target> targets, std::span<const float> priorities, bool* accepted) {
    thread_local std::vector<Pending> pending;  // by task
    pending.resize(tasks_.size());
    for (std::size_t t = 0; t < tasks_.size(); ++t) {
      tasks_[t]->tree.begin(pending[t].sums, targets.size());
      pending[t].touched = false;
    }
    std::uint64_t stale = 0;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      const Target& to = targets[i];
      accepted[i] =
          to.recent && change(to, weight_of(priorities[i]), pending[task_of_lane_[to.lane]]);
      stale += accepted[i] ? 0 : 1;
    }
    for (std::size_t t = 0; t < tasks_.size(); ++t) {
      if (!pending[t].touched) continue;
      tasks_[t]->tree.flush(pending[t].sums);
      tasks_[t]->census.template flush<Sync>(pending[t].counts);
    }
    if (stale > 0) Sync::fetch_add(counters_.stale_updates, stale, kRelaxed);
  }

 private:
  static constexpr auto kRelaxed = std::memory_order_relaxed;

  // What a thread's batch has still to add to a task.
  struct Pending {
    typename SumTree<Sync>::Pending sums;
    WeightCensus::Pending counts{};
    bool touched = false;
  };

  // A failed exchange means that another update or the kill succeeded, hence lock-free.
  bool change(const Target& to, std::uint32_t weight, Pending& pending) noexcept {
    const std::size_t at = leaf_of(to.lane, to.slot);
    SumTree<Sync>& tree = tree_of(to.lane);
    auto leaf = tree.leaf(at);
    std::uint64_t seen = leaf.load(std::memory_order_relaxed);
    do {
      if (leaf_tag(seen) != live_tag(to.lap)) return false;
      // (E) acq_rel keeps (B)'s release sequence, so (C) still finds the row's bytes behind an
      // updated word. Linearization point.
    } while (!Sync::compare_exchange(leaf, seen, leaf_word(live_tag(to.lap), weight),
                                     std::memory_order_acq_rel));
    tree.add(at, std::int64_t{weight} - leaf_weight(seen), pending.sums);
    WeightCensus::move(leaf_weight(seen), weight, pending.counts);
    pending.touched = true;
    raise_max(weight);
    return true;
  }

  SumTree<Sync>& tree_of(std::uint32_t lane) const noexcept {
    return tasks_[task_of_lane_[lane]]->tree;
  }

  float raise(float priority) const noexcept {
    if (options_.priority_exponent == 1.0) return priority;
    if (options_.priority_exponent == 0.0) return 1.0F;
    return std::pow(priority, static_cast<float>(options_.priority_exponent));
  }
  std::uint32_t clamp(std::uint32_t weight) noexcept {
    Sync::fetch_add(counters_.clamped_weights, 1U, kRelaxed);
    return weight;
  }

  std::uint32_t initial_weight() noexcept {
    switch (options_.initial_priority) {
      case InitialPriority::kFixed:
        return weight_of(options_.fixed_initial_priority);
      case InitialPriority::kMax:
        return max_weight();
      case InitialPriority::kMaxLive: {
        std::uint32_t largest = 0;
        for (const auto& task : tasks_) largest = std::max(largest, task->census.largest());
        return largest != 0 ? largest : static_cast<std::uint32_t>(kWeightOne);
      }
    }
    return 0;
  }
  void raise_max(std::uint32_t weight) noexcept {
    std::uint32_t seen = max_weight();
    while (weight > seen && !Sync::compare_exchange(max_weight_, seen, weight, kRelaxed)) {
    }
  }

  void propagate(std::uint32_t lane, std::uint64_t slot, std::uint32_t from,
                 std::uint32_t to) noexcept {
    tree_of(lane).add(leaf_of(lane, slot),
                      static_cast<std::int64_t>(to) - static_cast<std::int64_t>(from));
    tasks_[task_of_lane_[lane]]->census.template move<Sync>(from, to);
  }

  SamplerConfig options_;
  std::uint64_t leaves_per_lane_;
  std::vector<std::unique_ptr<Task>> tasks_;
  std::vector<std::uint32_t> first_lanes_;   // by task
  std::vector<std::uint32_t> task_of_lane_;  // by lane
  alignas(kCacheLineBytes) std::atomic<std::uint32_t> max_weight_{
      static_cast<std::uint32_t>(kWeightOne)};
  Counters counters_;
  alignas(kCacheLineBytes) std::atomic<std::uint64_t> calls_{0};
};

}  // namespace fastdistill::replay
