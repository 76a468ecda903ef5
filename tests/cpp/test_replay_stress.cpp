// SPDX-License-Identifier: MIT
// Random operations from several threads on a replay so small that writers lap readers all the
// time: no torn row, no stale update applied, no live update lost, and in the end every inner node
// the sum of its children. Usage: test_replay_stress [operations] [seed].
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <thread>
#include <unordered_map>

#include "replay/replay.h"
#include "replay_world.h"

namespace fastdistill::testing {
namespace {

using Replay = replay::Replay<replay::DirectSync>;

constexpr std::size_t kBatch = 16, kUpdaters = 2, kBatchesInFlight = 5;

struct Update {
  std::int64_t id = -1;
  std::uint32_t weight = 0;
};

struct Totals {
  std::uint64_t operations = 0, accepted = 0, stale = 0;
};

// Samples, checks what it got, and updates its share of the rows, fresh ones and ones that are
// several batches old. Rows are shared out by id, so that the last update of each is known.
class Updater {
 public:
  Updater(const World& world, Replay& replay, std::size_t self, std::uint64_t seed)
      : world_(world), replay_(replay), batch_(world, kBatch), self_(self), random_(seed + self) {}

  void run(std::uint64_t operations) {
    while (totals.operations < operations) {
      replay_.sample(0, kBatch, {.stratified = random() % 2 == 0}, batch_.out);
      totals.operations += kBatch;
      batch_.check_rows();
      check_weights(batch_.ids);
      in_flight_.push_back(batch_.ids);
      update(batch_.ids);
      if (in_flight_.size() > kBatchesInFlight) {
        update(in_flight_.front());
        in_flight_.pop_front();
      }
    }
  }

  Totals totals;
  std::unordered_map<std::int64_t, std::uint32_t> last_update;  // of ids that were accepted

 private:
  std::uint64_t random() { return random_ = mix(random_, 1, 2); }

  // A live row's weight must be one that was meant for this very row.
  void check_weights(const std::vector<std::int64_t>& ids) const {
    for (const std::int64_t id : ids) {
      const RowId row = replay::decode_id(id);
      const std::uint64_t word = leaf(row);
      if (is_live(row, word)) CHECK_EQ(replay::leaf_weight(word) >> 12, world_.owner_bits(row));
    }
  }
  void update(const std::vector<std::int64_t>& all) {
    std::vector<std::int64_t> ids;
    std::vector<float> priorities;
    std::vector<std::uint32_t> weights;
    for (const std::int64_t id : all) {
      const RowId row = replay::decode_id(id);
      if (mix(row.lane, row.step, 300) % kUpdaters != self_) continue;
      ids.push_back(id);
      weights.push_back(world_.weight(row, random()));
      priorities.push_back(World::priority(weights.back()));
    }
    std::array<bool, kBatch> accepted{};
    replay_.update(0, ids, priorities, accepted.data());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (accepted[i]) {
        last_update[ids[i]] = weights[i];
        ++totals.accepted;
      } else {
        const RowId row = replay::decode_id(ids[i]);
        CHECK(!is_live(row, leaf(row)));  // and it stays so, for tags only grow
        ++totals.stale;
      }
    }
    totals.operations += ids.size();
    if (last_update.size() > 100000) forget_dead_rows();
  }
  void forget_dead_rows() {
    std::erase_if(last_update, [&](const auto& entry) {
      const RowId row = replay::decode_id(entry.first);
      return !is_live(row, leaf(row));
    });
  }
  std::uint64_t leaf(RowId row) const {
    return replay_.index(0).load(row.lane, replay_.storage().slot_of(row.step));
  }
  bool is_live(RowId row, std::uint64_t word) const {
    return replay::leaf_tag(word) == replay::live_tag(replay_.storage().lap_of(row.step));
  }

  const World& world_;
  Replay& replay_;
  WorldBatch batch_;
  std::deque<std::vector<std::int64_t>> in_flight_;
  std::size_t self_;
  std::uint64_t random_;
};

// Every live row has its last accepted update, or the priority it was appended with.
void check_no_update_lost(const World& world, Replay& replay,
                          const std::vector<std::unique_ptr<Updater>>& updaters) {
  std::size_t live = 0;
  for (const auto& [id, priority] : replay.priorities(0)) {
    std::uint32_t expected = world.weight(replay::decode_id(id), 0);
    for (const auto& updater : updaters) {
      const auto found = updater->last_update.find(id);
      if (found != updater->last_update.end()) expected = found->second;
    }
    CHECK_EQ(priority, static_cast<double>(World::priority(expected)));
    ++live;
  }
  CHECK_EQ(live, replay.live_rows());
}

void stress(std::uint64_t operations, std::uint64_t seed) {
  World world = small_world(4, 61);
  world.config.lanes_per_task = {1, 3};
  Replay replay(world.config);
  // The lap's half of the tags wraps from 2^31 to 0 on the way.
  start_lanes_at(world, replay,
                 replay.storage().layout().slots_per_lane * ((std::uint64_t{1} << 31) - 50));

  WorldWriter<Replay> fill(world, replay, {0, 1, 2, 3});
  for (int i = 0; i < 100; ++i) fill.append();
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> appended{0};
  std::vector<std::thread> writers;
  for (const std::vector<std::int64_t>& lanes : {std::vector<std::int64_t>{0, 2}, {3, 1}}) {
    writers.emplace_back([&, lanes] {
      WorldWriter<Replay> writer(world, replay, lanes);
      std::uint64_t steps = 0;
      while (!done.load(std::memory_order_relaxed)) {
        writer.append();
        steps += writer.lanes();
      }
      appended.fetch_add(steps, std::memory_order_relaxed);
    });
  }
  std::vector<std::unique_ptr<Updater>> updaters;
  std::vector<std::thread> threads;
  for (std::size_t u = 0; u < kUpdaters; ++u) {
    updaters.push_back(std::make_unique<Updater>(world, replay, u, seed));
  }
  for (std::size_t u = 0; u < kUpdaters; ++u) {
    threads.emplace_back([&, u] { updaters[u]->run(operations * 3 / 4 / kUpdaters); });
  }
  for (std::thread& thread : threads) thread.join();
  done.store(true, std::memory_order_relaxed);
  for (std::thread& writer : writers) writer.join();

  Totals totals{.operations = appended.load(std::memory_order_relaxed)};
  for (const auto& updater : updaters) {
    totals.operations += updater->totals.operations;
    totals.accepted += updater->totals.accepted;
    totals.stale += updater->totals.stale;
  }
  // Whatever the writers were too slow for.
  for (; totals.operations < operations; totals.operations += fill.lanes()) fill.append();
  CHECK_EQ(replay.check_valid(), "");
  check_no_update_lost(world, replay, updaters);
  const replay::Statistics statistics = replay.statistics(0);
  CHECK_EQ(statistics.stale_updates, totals.stale);
  CHECK(totals.accepted > 0);
  CHECK(totals.stale > 0);
  std::printf("%llu operations, seed %llu: %llu updates accepted, %llu stale, %llu redraws\n",
              static_cast<unsigned long long>(totals.operations),
              static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(totals.accepted),
              static_cast<unsigned long long>(totals.stale),
              static_cast<unsigned long long>(statistics.redraws));
}

}  // namespace
}  // namespace fastdistill::testing

int main(int argc, char** argv) {
  const std::uint64_t operations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 3000000;
  const std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  fastdistill::testing::stress(operations, seed);
  return 0;
}
