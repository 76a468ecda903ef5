// SPDX-License-Identifier: MIT
// The sum tree: 64-bit leaf words {tag, weight} under inner nodes that hold exact integer sums.
// A node's eight children share a cache line and there is no root: the total is the sum of the top
// line, which spares the hottest word. This file knows sums and descents; what a tag means is
// priority_index.h's business.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

#include "common/cache_line.h"
#include "common/huge_array.h"

namespace fastdistill::replay {

inline std::uint32_t leaf_weight(std::uint64_t word) noexcept {
  return static_cast<std::uint32_t>(word);
}
inline std::uint32_t leaf_tag(std::uint64_t word) noexcept {
  return static_cast<std::uint32_t>(word >> 32);
}
inline std::uint64_t leaf_word(std::uint32_t tag, std::uint32_t weight) noexcept {
  return (std::uint64_t{tag} << 32) | weight;
}

// Picks the child in whose interval `remainder` lies and leaves the rest in `remainder`.
// Returns 8 when the children add up to less: a change was on its way, draw again. Never clamp to
// the last child instead, that would favour it.
inline unsigned pick_child(const std::int64_t (&weights)[8], std::int64_t& remainder) noexcept {
  std::int64_t prefix = 0, before = 0;
  unsigned child = 0;
  for (const std::int64_t weight : weights) {
    prefix += weight;
    const bool further = remainder >= prefix;
    child += further ? 1U : 0U;
    before = further ? prefix : before;
  }
  remainder -= before;
  return child;
}

template <class Sync>
class SumTree {
 public:
  static constexpr std::size_t kFanout = 8;

  // One position on its way from the top line to a leaf.
  struct Descent {
    std::int64_t remainder = 0;
    std::size_t node = 0;         // child group at the next level down; in the end the leaf
    std::uint64_t leaf_word = 0;  // as it was when the leaf was picked
    bool lost = false;            // met sums that do not add up at this moment
  };

  // What a batch of changes adds to the upper levels, summed up before it is added. The rows of a
  // batch meet in few nodes there, and atomic adds are most of what an update costs.
  struct Pending {
    std::size_t level = 0;             // the lowest level that is summed up
    std::vector<std::int64_t> deltas;  // per node of that level
  };

  explicit SumTree(std::size_t leaves) : leaves_(round_up(leaves, kFanout)) {
    std::size_t nodes = leaves_.size();
    do {
      nodes = (nodes + kFanout - 1) / kFanout;
      levels_.emplace_back(round_up(nodes, kFanout));
    } while (nodes > kFanout);
  }

  std::size_t num_leaves() const noexcept { return leaves_.size(); }
  std::size_t num_levels() const noexcept { return levels_.size(); }

  std::atomic_ref<std::uint64_t> leaf(std::size_t i) const noexcept {
    return std::atomic_ref<std::uint64_t>(leaves_[i]);
  }
  void prefetch_leaf(std::size_t i) const noexcept {
    __builtin_prefetch(&leaves_[i], 1);
    __builtin_prefetch(&levels_[0][i / kFanout], 1);
  }

  // Adds to every ancestor of a leaf whose weight has just changed by `delta`. The nodes carry no
  // other data, so the adds are relaxed; a descent that meets them half done draws again.
  void add(std::size_t leaf, std::int64_t delta) noexcept {
    if (delta == 0) return;
    for (const auto& level : levels_) {
      leaf /= kFanout;
      Sync::fetch_add(node(level, leaf), delta, std::memory_order_relaxed);
    }
  }

  // The same for the changes of a batch: begin(), any number of add(), flush(). Levels with more
  // nodes than the batch has rows are added to at once, for no two rows are likely to meet there.
  void begin(Pending& pending, std::size_t rows) const {
    pending.level = 0;
    while (pending.level < levels_.size() && levels_[pending.level].size() > rows) ++pending.level;
    pending.deltas.assign(pending.level < levels_.size() ? levels_[pending.level].size() : 0, 0);
  }
  void add(std::size_t leaf, std::int64_t delta, Pending& pending) noexcept {
    if (delta == 0) return;
    std::size_t at = leaf / kFanout;
    for (std::size_t level = 0; level < pending.level; ++level, at /= kFanout) {
      Sync::fetch_add(node(levels_[level], at), delta, std::memory_order_relaxed);
    }
    if (!pending.deltas.empty()) pending.deltas[at] += delta;
  }
  void flush(Pending& pending) noexcept {
    std::vector<std::int64_t>& deltas = pending.deltas;
    for (std::size_t level = pending.level; level < levels_.size(); ++level) {
      if (level > pending.level) sum_children(deltas, levels_[level - 1].size());
      for (std::size_t i = 0; i < levels_[level].size(); ++i) {
        if (deltas[i] == 0) continue;
        Sync::fetch_add(node(levels_[level], i), deltas[i], std::memory_order_relaxed);
      }
    }
  }

  // The sum of all weights, up to changes in flight. Signed, for two adds to one node may arrive
  // in either order: a sum may be below zero for a moment, and must not be seen as 2^64 then.
  std::int64_t total() const noexcept {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < levels_.back().size(); ++i) {
      sum += std::max<std::int64_t>(load(levels_.back(), i), 0);
    }
    return sum;
  }

  // One step of a descent; call it for level = num_levels() - 1 down to 0, then pick_leaf(). The
  // caller walks many descents side by side, so that their cache misses overlap.
  void pick_node(std::size_t level, Descent& descent) const noexcept {
    if (descent.lost) return;
    const std::size_t first = descent.node * kFanout;
    std::int64_t weights[kFanout];
    for (std::size_t i = 0; i < kFanout; ++i) {
      weights[i] = std::max<std::int64_t>(load(levels_[level], first + i), 0);
    }
    if (!advance(descent, weights)) return;
    if (level > 0) {
      __builtin_prefetch(&levels_[level - 1][descent.node * kFanout]);
    } else {
      __builtin_prefetch(&leaves_[descent.node * kFanout]);
    }
  }

  void pick_leaf(Descent& descent) const noexcept {
    if (descent.lost) return;
    const std::size_t first = descent.node * kFanout;
    std::uint64_t words[kFanout];
    std::int64_t weights[kFanout];
    for (std::size_t i = 0; i < kFanout; ++i) {
      // (C) acquire, pairs with (B) of PriorityIndex: a live word seen is a row published.
      words[i] = leaf(first + i).load(std::memory_order_acquire);
      weights[i] = leaf_weight(words[i]);
    }
    if (!advance(descent, weights)) return;
    descent.leaf_word = words[descent.node % kFanout];
  }

  // The exact sum of the leaves, and the leaf at `remainder` of it: one pass each over all leaves.
  // The way out for a sampler whose descents keep meeting the half-done work of a stopped thread.
  std::int64_t scan_total() const noexcept {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < leaves_.size(); ++i) {
      sum += leaf_weight(leaf(i).load(std::memory_order_relaxed));
    }
    return sum;
  }
  Descent scan_pick(std::int64_t remainder) const noexcept {
    for (std::size_t i = 0; i < leaves_.size(); ++i) {
      const std::uint64_t word = leaf(i).load(std::memory_order_acquire);  // as (C)
      if (remainder < leaf_weight(word)) {
        return {.remainder = remainder, .node = i, .leaf_word = word, .lost = false};
      }
      remainder -= leaf_weight(word);
    }
    return {.remainder = 0, .node = 0, .leaf_word = 0, .lost = true};
  }

  // At rest: the first inner node that is not the sum of its children, as level * 2^48 + index,
  // or -1 if there is none.
  std::int64_t first_wrong_node() const noexcept {
    for (std::size_t level = 0; level < levels_.size(); ++level) {
      for (std::size_t i = 0; i < levels_[level].size(); ++i) {
        if (load(levels_[level], i) != children_sum(level, i)) {
          return static_cast<std::int64_t>((level << 48) + i);
        }
      }
    }
    return -1;
  }

 private:
  using Level = HugeArray<std::int64_t>;

  static std::atomic_ref<std::int64_t> node(const Level& level, std::size_t i) noexcept {
    return std::atomic_ref<std::int64_t>(level[i]);
  }
  static std::int64_t load(const Level& level, std::size_t i) noexcept {
    return node(level, i).load(std::memory_order_relaxed);
  }

  static bool advance(Descent& descent, const std::int64_t (&weights)[kFanout]) noexcept {
    const unsigned child = pick_child(weights, descent.remainder);
    descent.lost = child == kFanout;
    descent.node = descent.node * kFanout + child;
    return !descent.lost;
  }

  // Makes the deltas of a level those of the level above, in place: parents come before their first
  // child. Behind the last parent lies nothing, up to a whole line.
  static void sum_children(std::vector<std::int64_t>& deltas, std::size_t children) noexcept {
    const std::size_t parents = children / kFanout;
    for (std::size_t i = 0; i < parents; ++i) {
      const auto first = deltas.begin() + static_cast<std::ptrdiff_t>(i * kFanout);
      deltas[i] = std::accumulate(first, first + kFanout, std::int64_t{0});
    }
    for (std::size_t i = parents; i < round_up(parents, kFanout); ++i) deltas[i] = 0;
  }

  std::int64_t children_sum(std::size_t level, std::size_t i) const noexcept {
    std::int64_t sum = 0;
    for (std::size_t child = i * kFanout; child < (i + 1) * kFanout; ++child) {
      if (level > 0) {
        sum += child < levels_[level - 1].size() ? load(levels_[level - 1], child) : 0;
      } else if (child < leaves_.size()) {
        sum += leaf_weight(leaf(child).load(std::memory_order_relaxed));
      }
    }
    return sum;
  }

  HugeArray<std::uint64_t> leaves_;
  std::vector<Level> levels_;  // levels_[0] holds the parents of the leaves, the last the top line
};

}  // namespace fastdistill::replay
