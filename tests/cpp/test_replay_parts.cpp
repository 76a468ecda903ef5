// SPDX-License-Identifier: MIT
// The replay's parts by themselves: random numbers and checksums against published values, the
// census against its bounds, the sum tree against a plain array, options against their ranges, what
// readers of a lane's cursors see against a plain count.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "common/crc32c.h"
#include "common/philox.h"
#include "replay/replay_impl.h"
#include "replay_world.h"

namespace fastdistill::testing {
namespace {

using replay::DirectSync;
using replay::WeightCensus;

// Known answers of the authors' Random123 distribution (kat_vectors, philox4x32 10 rounds).
void philox_gives_the_published_words() {
  using Words = std::array<std::uint32_t, 4>;
  CHECK(
      (philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  CHECK((philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
         Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

void crc32c_gives_the_published_sums() {
  CHECK_EQ(crc32c("123456789", 9), 0xE3069283U);
  const unsigned char zeros[32] = {};
  CHECK_EQ(crc32c(zeros, 32), 0x8A9136AAU);  // RFC 3720, appendix B.4
  CHECK_EQ(crc32c("6789", 4, crc32c("12345", 5)), 0xE3069283U);
}

void census_bounds_every_weight() {
  std::uint32_t last_bucket = 0;
  for (std::uint64_t w = 1; w <= 0xFFFFFFFF; w += 1 + w / 7) {
    const auto weight = static_cast<std::uint32_t>(w);
    const std::size_t bucket = WeightCensus::bucket(weight);
    CHECK(bucket < WeightCensus::kBuckets && bucket >= last_bucket);
    last_bucket = static_cast<std::uint32_t>(bucket);
    const std::uint64_t low = WeightCensus::floor_of(bucket);
    const std::uint64_t high = WeightCensus::ceiling_of(bucket);
    CHECK(low <= weight && weight <= high);
    CHECK(high - low <= low / 4);
  }
  WeightCensus census;
  WeightCensus::Pending moves{};
  WeightCensus::move(0, 7, moves);
  WeightCensus::move(7, 9000, moves);
  CHECK_EQ(census.largest(), 0U);
  census.flush<DirectSync>(moves);
  CHECK(census.smallest() > 7 && census.largest() >= 9000);
  WeightCensus::move(9000, 0, moves);
  census.flush<DirectSync>(moves);
  CHECK_EQ(census.smallest(), 0U);
  CHECK_EQ(census.largest(), 0U);
  census.move<DirectSync>(0, 5);
  census.move<DirectSync>(0, 1000);
  CHECK_EQ(census.smallest(), 5U);
  census.move<DirectSync>(5, 0);
  CHECK(census.smallest() <= 1000 && census.smallest() > 799);
}

// Every position of the line leads to the leaf that a walk over the array gives.
void tree_finds_the_leaf_of_every_position() {
  for (const std::size_t leaves : {1, 8, 9, 64, 65, 600}) {
    replay::SumTree<DirectSync> tree(leaves);
    std::vector<std::uint32_t> weights(tree.num_leaves(), 0);
    for (std::size_t round = 0; round < 300; ++round) {
      const std::size_t i = mix(round, leaves, 0) % leaves;
      const auto weight = static_cast<std::uint32_t>(mix(round, leaves, 1) % 4);
      tree.leaf(i).store(replay::leaf_word(7, weight), std::memory_order_relaxed);
      tree.add(i, std::int64_t{weight} - weights[i]);
      weights[i] = weight;
    }
    CHECK_EQ(tree.first_wrong_node(), -1);
    const auto total = std::accumulate(weights.begin(), weights.end(), std::int64_t{0});
    CHECK_EQ(tree.total(), total);
    CHECK_EQ(tree.scan_total(), total);
    std::int64_t position = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      for (std::uint32_t unit = 0; unit < weights[i]; ++unit, ++position) {
        replay::SumTree<DirectSync>::Descent descent{.remainder = position};
        for (std::size_t level = tree.num_levels(); level-- > 0;) tree.pick_node(level, descent);
        tree.pick_leaf(descent);
        CHECK(!descent.lost);
        CHECK_EQ(descent.node, i);
        CHECK_EQ(descent.leaf_word, replay::leaf_word(7, weights[i]));
        CHECK_EQ(tree.scan_pick(position).node, i);
      }
    }
    CHECK(tree.scan_pick(total).lost);
  }
}

// Batches of every length leave the sums that one change at a time leaves; and a batch of many rows
// adds to far fewer nodes.
struct CountingSync : DirectSync {
  static inline std::uint64_t adds = 0;
  template <class Atomic, class Value>
  static auto fetch_add(Atomic&& in, Value value, std::memory_order order) noexcept {
    ++adds;
    return DirectSync::fetch_add(in, value, order);
  }
};

void tree_adds_a_batch_as_its_changes() {
  for (const std::size_t leaves : {1, 9, 65, 600, 5000, 33000}) {
    replay::SumTree<CountingSync> tree(leaves);
    replay::SumTree<CountingSync>::Pending pending;
    for (const std::size_t rows : {1, 7, 8, 16, 32, 100, 512, 1000}) {
      CountingSync::adds = 0;
      tree.begin(pending, rows);
      for (std::size_t row = 0; row < rows; ++row) {
        const std::size_t i = mix(row, leaves, rows) % leaves;
        const auto weight = static_cast<std::uint32_t>(mix(row, leaves, rows + 1) >> 32);
        const std::int64_t old = replay::leaf_weight(tree.leaf(i).load());
        tree.leaf(i).store(replay::leaf_word(7, weight));
        tree.add(i, weight - old, pending);
      }
      tree.flush(pending);
      CHECK_EQ(tree.first_wrong_node(), -1);
      CHECK_EQ(tree.total(), tree.scan_total());
      CHECK(CountingSync::adds <= rows * tree.num_levels());
      if (leaves == 5000 && rows == 512) CHECK(CountingSync::adds < 2 * rows);
    }
  }
}

// Sums that are off for a moment lose the draw; nothing is clamped and nothing wraps.
void tree_loses_draws_while_sums_are_off() {
  replay::SumTree<DirectSync> tree(64);
  tree.leaf(3).store(replay::leaf_word(1, 10), std::memory_order_relaxed);
  tree.add(3, 15);  // five too many
  replay::SumTree<DirectSync>::Descent descent{.remainder = 12};
  for (std::size_t level = tree.num_levels(); level-- > 0;) tree.pick_node(level, descent);
  tree.pick_leaf(descent);
  CHECK(descent.lost);
  tree.add(3, -25);  // and now below zero
  CHECK_EQ(tree.total(), 0);
  CHECK(tree.first_wrong_node() >= 0);
}

void weights_round_saturate_and_keep_zero() {
  World world = small_world(1, 9);
  const replay::SlotLayout layout(world.config);
  replay::SamplerConfig options = world.config.samplers[0];
  options.priority_exponent = 0.5;
  replay::PriorityIndex<DirectSync> index(world.config, options, layout);
  CHECK_EQ(index.weight_of(0.0F), 0U);
  CHECK_EQ(index.weight_of(1.0F), 1U << 20);
  CHECK_EQ(index.weight_of(4.0F), 2U << 20);
  CHECK_EQ(index.counters().clamped_weights.load(), 0U);
  CHECK_EQ(index.weight_of(1e-30F), 1U);
  CHECK_EQ(index.weight_of(std::numeric_limits<float>::max()), replay::kMaxWeight);
  CHECK_EQ(index.counters().clamped_weights.load(), 2U);
  CHECK(std::abs(index.priority_of(index.weight_of(9.0F)) - 9.0) < 1e-5);
  options.priority_exponent = 0.0;
  replay::PriorityIndex<DirectSync> uniform(world.config, options, layout);
  CHECK_EQ(uniform.weight_of(0.0F), 1U << 20);
}

void options_out_of_range_are_refused() {
  const World world = small_world(2, 9);
  const auto refused = [&](auto change) {
    replay::ReplayConfig config = world.config;
    change(config);
    CHECK_THROWS(replay::validate(config), std::invalid_argument);
  };
  replay::validate(world.config);
  refused([](auto& c) { c.num_lanes = 0; });
  refused([](auto& c) { c.num_lanes = replay::kMaxLanes + 1; });
  refused([](auto& c) { c.stack = 0; });
  refused([](auto& c) { c.n_step = 9; });
  refused([](auto& c) { c.discount = std::nan(""); });
  refused([](auto& c) { c.frame_bytes = 0; });
  refused([](auto& c) { c.lanes_per_task = {1}; });
  refused([](auto& c) { c.samplers.clear(); });
  refused([](auto& c) { c.samplers[0].priority_exponent = 1.5; });
}

// Two writers on a lane are told so, and neither lane of the refused append has changed.
void a_second_writer_of_a_lane_is_refused() {
  World world = small_world(2, 9);
  replay::Replay<DirectSync> replay(world.config);
  WorldWriter<replay::Replay<DirectSync>> both(world, replay, {0, 1}), twice(world, replay, {1, 1});
  replay.storage().lane(1).has_writer.store(true);
  CHECK_THROWS(both.append(), std::invalid_argument);
  replay.storage().lane(1).has_writer.store(false);
  CHECK_THROWS(twice.append(), std::invalid_argument);
  CHECK_EQ(replay.statistics(0).appended_steps, 0U);
  both.append();
  CHECK_EQ(replay.statistics(0).appended_steps, 2U);
}

// The cursors of a real lane; in front of each load its writer goes on as far as it is told.
struct InterruptedLane {
  struct Cursor {
    const std::atomic<std::uint64_t>& value;
    const std::function<void()>& before_load;
    std::uint64_t load(std::memory_order order) const {
      before_load();
      return value.load(order);
    }
  };
  Cursor end, floor;
};

// A reader of the cursors among appends and clears, its two loads at any two places between them:
// what it says is what the lane held, by a plain count, at some moment from the first load on.
void cursors_tell_what_a_lane_held_at_one_instant() {
  constexpr std::string_view kSteps = "aaaaaaaaaaaaaaaacaaccaca";  // append, clear
  for (std::size_t first = 0; first <= kSteps.size(); ++first) {
    for (std::size_t second = first; second <= kSteps.size(); ++second) {
      World world = small_world(1, 9);
      replay::Replay<DirectSync> replay(world.config);
      WorldWriter<replay::Replay<DirectSync>> writer(world, replay, {0});
      const std::uint64_t slots = replay.storage().layout().slots_per_lane;
      std::vector<std::pair<std::uint64_t, std::uint64_t>> held{{0, 0}};  // after so many steps
      const auto go_on_to = [&](std::size_t step) {
        while (held.size() <= step) {
          auto [begin, end] = held.back();
          if (kSteps[held.size() - 1] == 'a') {
            writer.append();
            ++end;
            if (end - begin > slots) ++begin;
          } else {
            replay.clear();
            begin = end;
          }
          held.emplace_back(begin, end);
        }
      };
      std::size_t loads = 0;
      const std::function<void()> before_load = [&] { go_on_to(loads++ == 0 ? first : second); };
      const auto& lane = replay.storage().lane(0);
      const InterruptedLane interrupted{.end = {lane.end, before_load},
                                        .floor = {lane.floor, before_load}};
      const replay::LaneRun run = replay::held_steps(interrupted, slots);
      CHECK_EQ(loads, 2U);
      const auto from = held.begin() + static_cast<std::ptrdiff_t>(first);
      CHECK(std::find(from, held.end(), std::pair(run.first, run.end)) != held.end());
    }
  }
}

// Rows that scans alone can find are drawn as often as they weigh, in two tasks: Pearson's
// chi-square, with a false alarm once in 10^6 seeds.
void scans_draw_rows_by_their_weights() {
  World world = small_world(2, 60);
  world.config.lanes_per_task = {1, 1};
  replay::Replay<DirectSync> replay(world.config);
  WorldWriter<replay::Replay<DirectSync>> writer(world, replay, {0, 1});
  for (int i = 0; i < 60; ++i) writer.append();
  std::vector<std::int64_t> ids;
  std::vector<float> priorities;
  double sums[2] = {};
  for (const auto& row : replay.priorities(0)) {
    ids.push_back(row.id);
    priorities.push_back(static_cast<float>(1 + ids.size() % 5));
    sums[replay::decode_id(row.id).lane] += priorities.back();
  }
  const auto accepted = std::make_unique<bool[]>(ids.size());
  replay.update(0, ids, priorities, accepted.get());
  // As behind threads that stopped between leaf and sums: these are so far off that every descent
  // is lost, and a task is drawn by them alone.
  constexpr double kShares[2] = {0.25, 0.75};
  replay.index(0).task(0).tree.add(0, std::int64_t{1} << 50);
  replay.index(0).task(1).tree.add(0, std::int64_t{3} << 50);

  constexpr std::size_t kBatch = 100, kDraws = 40000;
  WorldBatch batch(world, kBatch);
  std::map<std::int64_t, double> counts;
  for (std::size_t drawn = 0; drawn < kDraws; drawn += kBatch) {
    replay.sample(0, kBatch, {}, batch.out);
    for (const std::int64_t id : batch.ids) ++counts[id];
  }
  CHECK_EQ(replay.statistics(0).scans, kDraws);
  double chi_square = 0.0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::uint32_t task = replay::decode_id(ids[i]).lane;
    const double expected = kDraws * kShares[task] * priorities[i] / sums[task];
    chi_square += (counts[ids[i]] - expected) * (counts[ids[i]] - expected) / expected;
  }
  const double degrees = static_cast<double>(ids.size()) - 1.0;
  // The quantile of chi-square at 1 - 10^-6 (Wilson and Hilferty 1931), z that of a normal one.
  const double z = 4.753424, part = 2.0 / (9.0 * degrees);
  const double limit = degrees * std::pow(1.0 - part + z * std::sqrt(part), 3.0);
  std::printf("scans: chi-square %.1f of %zu rows, limit %.1f\n", chi_square, ids.size(), limit);
  CHECK(chi_square < limit);
}

}  // namespace
}  // namespace fastdistill::testing

int main() {
  using namespace fastdistill::testing;
  philox_gives_the_published_words();
  crc32c_gives_the_published_sums();
  census_bounds_every_weight();
  tree_finds_the_leaf_of_every_position();
  tree_adds_a_batch_as_its_changes();
  tree_loses_draws_while_sums_are_off();
  weights_round_saturate_and_keep_zero();
  options_out_of_range_are_refused();
  scans_draw_rows_by_their_weights();
  a_second_writer_of_a_lane_is_refused();
  cursors_tell_what_a_lane_held_at_one_instant();
  return 0;
}
