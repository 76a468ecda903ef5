// SPDX-License-Identifier: MIT
// Nobody waits for anybody: one thread is stopped in front of each shared write of each operation
// in turn, for good as far as the others can tell, and they append, sample and update to the end.
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "replay/replay_impl.h"
#include "replay_world.h"

namespace fastdistill::testing {
namespace {

// Stops the thread that carries it in front of its `stop_at`-th shared write.
struct Victim {
  std::uint64_t stop_at = 0, writes = 0;
  std::atomic<bool> stopped{false}, resume{false};

  void before_write() {
    if (writes++ != stop_at) return;
    stopped.store(true, std::memory_order_release);
    stopped.notify_all();
    resume.wait(false, std::memory_order_acquire);
  }
};
thread_local Victim* victim = nullptr;

struct StoppingSync {
  static void before_write() {
    if (victim != nullptr) victim->before_write();
  }
  template <class Atomic, class Value>
  static void store(Atomic&& to, Value value, std::memory_order order) {
    before_write();
    replay::DirectSync::store(to, value, order);
  }
  template <class Atomic, class Value>
  static auto exchange(Atomic&& in, Value value, std::memory_order order) {
    before_write();
    return replay::DirectSync::exchange(in, value, order);
  }
  template <class Atomic, class Value>
  static auto fetch_add(Atomic&& in, Value value, std::memory_order order) {
    before_write();
    return replay::DirectSync::fetch_add(in, value, order);
  }
  template <class Atomic, class Value>
  static bool compare_exchange(Atomic&& in, Value& expected, Value desired,
                               std::memory_order order) {
    before_write();
    return replay::DirectSync::compare_exchange(in, expected, desired, order);
  }
  static void write_shared(std::byte* shared, const void* from, std::size_t bytes) {
    replay::write_shared_words(shared, from, bytes, before_write);
  }
  static void write_record(std::byte* shared, const void* from, std::size_t bytes) {
    replay::write_shared_words(shared, from, bytes, before_write);
  }
};

using Replay = replay::Replay<StoppingSync>;

constexpr std::size_t kBatch = 8;

struct Scene {
  explicit Scene(float heavy_priority) : world(small_world(3, 9)), replay(world.config) {
    WorldWriter<Replay> fill(world, replay, {0, 1, 2});
    for (int i = 0; i < 30; ++i) fill.append();
    // Lane 0's oldest row is the next to be killed; heavy, it leaves the sums far off meanwhile.
    const auto rows = replay.priorities(0);
    heavy_id = rows.front().id;
    bool accepted = false;
    replay.update(0, {&heavy_id, 1}, {&heavy_priority, 1}, &accepted);
    CHECK(accepted);
  }
  World world;
  Replay replay;
  std::int64_t heavy_id = 0;
};

void sample_and_update(Scene& scene) {
  WorldBatch batch(scene.world, kBatch);
  scene.replay.sample(0, kBatch, {}, batch.out);
  batch.check_rows();
  std::vector<float> priorities(kBatch, 0.5F);
  bool accepted[kBatch];
  scene.replay.update(0, batch.ids, priorities, accepted);
}

// What the others do while one thread stands still. Lanes 1 and 2 are lapped many times.
void others_work(Scene& scene) {
  std::thread writer([&] {
    WorldWriter<Replay> append(scene.world, scene.replay, {1, 2});
    for (int i = 0; i < 60; ++i) append.append();
  });
  for (int i = 0; i < 60; ++i) sample_and_update(scene);
  writer.join();
}

// Returns whether the operation has a shared write number `stop_at`.
bool stopped_at(std::uint64_t stop_at, float heavy_priority,
                const std::function<void(Scene&)>& operation, std::uint64_t& scans) {
  Scene scene(heavy_priority);
  Victim stopping;
  stopping.stop_at = stop_at;
  std::thread thread([&] {
    victim = &stopping;
    operation(scene);
    victim = nullptr;
    stopping.stopped.store(true, std::memory_order_release);  // or it never was
    stopping.stopped.notify_all();
  });
  stopping.stopped.wait(false, std::memory_order_acquire);
  others_work(scene);
  stopping.resume.store(true, std::memory_order_release);
  stopping.resume.notify_all();
  thread.join();
  others_work(scene);
  CHECK_EQ(scene.replay.check_valid(), "");
  scans += scene.replay.statistics(0).scans;
  return stopping.writes > stop_at;
}

// Returns the scans that were needed over all stops.
std::uint64_t stop_everywhere(const char* name, std::uint64_t least_writes, float heavy_priority,
                              const std::function<void(Scene&)>& operation) {
  std::uint64_t writes = 0, scans = 0;
  while (stopped_at(writes, heavy_priority, operation, scans)) ++writes;
  std::printf("%s: stopped at each of %llu shared writes, %llu rows drawn by scans\n", name,
              static_cast<unsigned long long>(writes), static_cast<unsigned long long>(scans));
  CHECK(writes >= least_writes);
  return scans;
}

// Several steps, among them ones that kill, that make rows live, and that do both.
void append_to_lane_0(Scene& scene) {
  WorldWriter<Replay> writer(scene.world, scene.replay, {0});
  for (int i = 0; i < 6; ++i) writer.append();
}

void update_heavy_row(Scene& scene) {
  const float priority = 3.0F;
  bool accepted = false;
  scene.replay.update(0, {&scene.heavy_id, 1}, {&priority, 1}, &accepted);
}

// As many rows as there are, so that what they add to the sums is withheld until the last leaf.
void update_all_rows(Scene& scene) {
  std::vector<std::int64_t> ids;
  for (const auto& row : scene.replay.priorities(0)) ids.push_back(row.id);
  const std::vector<float> priorities(ids.size(), 3.0F);
  const auto accepted = std::make_unique<bool[]>(ids.size());
  scene.replay.update(0, ids, priorities, accepted.get());
}

void check_weights(Replay& replay, const World& world) {
  using replay::WeightNormalization;
  for (const auto normalization :
       {WeightNormalization::kBatch, WeightNormalization::kGlobal, WeightNormalization::kNone}) {
    for (const std::vector<double>& tasks : {std::vector<double>{}, {1.0, 0.0}, {1.0, 1.0}}) {
      WorldBatch batch(world, kBatch);
      try {
        replay.sample(0, kBatch, {.normalization = normalization, .task_weights = tasks},
                      batch.out);
      } catch (const std::runtime_error&) {
        continue;  // no row to draw yet
      }
      for (std::size_t i = 0; i < kBatch; ++i) {
        CHECK(std::isfinite(batch.out.weight[i]) && batch.out.weight[i] > 0.0F);
      }
    }
  }
}

// The first rows ever, each in a task of its own: weights are finite at each point of an append.
void stop_in_the_first_rows() {
  std::uint64_t stop_at = 0;
  for (bool has_stopped = true; has_stopped; ++stop_at) {
    World world = small_world(2, 9);
    world.config.lanes_per_task = {1, 1};
    Replay replay(world.config);
    Victim stopping;
    stopping.stop_at = stop_at;
    std::thread thread([&] {
      victim = &stopping;
      WorldWriter<Replay> writer(world, replay, {0, 1});
      for (int i = 0; i < 12; ++i) writer.append();
      victim = nullptr;
      stopping.stopped.store(true, std::memory_order_release);
      stopping.stopped.notify_all();
    });
    stopping.stopped.wait(false, std::memory_order_acquire);
    check_weights(replay, world);
    stopping.resume.store(true, std::memory_order_release);
    stopping.resume.notify_all();
    thread.join();
    has_stopped = stopping.writes > stop_at;
    CHECK_EQ(replay.check_valid(), "");
  }
  CHECK(stop_at > 200);
}

void run() {
  stop_in_the_first_rows();
  stop_everywhere("append", 120, 2.0F, append_to_lane_0);
  const std::uint64_t scans = stop_everywhere("append, heavy kill", 120, 4000.0F, append_to_lane_0);
  CHECK(scans > 0);  // the case that redraws alone would not get out of
  stop_everywhere("update", 4, 4000.0F, update_heavy_row);
  CHECK(stop_everywhere("update all", 30, 4000.0F, update_all_rows) > 0);
  stop_everywhere("sample and update", 2, 2.0F, sample_and_update);
}

}  // namespace
}  // namespace fastdistill::testing

int main() {
  fastdistill::testing::run();
  return 0;
}
