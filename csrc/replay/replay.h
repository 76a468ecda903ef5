// SPDX-License-Identifier: MIT
// The prioritized replay: a LaneStorage and one PriorityIndex per sampler, kept in step.
//
// Roles. One thread at a time appends to a lane; any number of threads sample, update priorities
// and read. Progress: read is wait-free; append, sample and update are lock-free; nobody waits for
// a stopped thread. Order of one append: kill the row that loses its history, announce (A), copy,
// publish (G), make complete rows live (B). A sampled row was live at (C), inside the call, and its
// bytes are whole, by (F). Not promised: a snapshot of all leaves at one instant.
// The guarantees per method and the proof are in docs/replay.md.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "replay/config.h"
#include "replay/lane_storage.h"
#include "replay/priority_index.h"

namespace fastdistill::replay {

// Rows for `lanes[i]`, in arrays by row; flags may be null for all false, priority for none.
struct AppendIn {
  std::span<const std::int64_t> lanes;
  const std::byte* frame = nullptr;
  const std::int64_t* action = nullptr;
  const float* reward = nullptr;
  const bool* terminated = nullptr;
  const bool* truncated = nullptr;
  const bool* boundary = nullptr;
  const float* priority = nullptr;
  std::vector<const std::byte*> columns;
};

enum class WeightNormalization { kBatch, kGlobal, kNone };

struct SampleOptions {
  double importance_exponent = 0.4;
  bool stratified = true;
  WeightNormalization normalization = WeightNormalization::kBatch;
  std::vector<double> task_weights = {};  // empty: tasks in proportion to their priorities
};

// What a task has to draw from. At least as many as there are live leaves: raised before rows
// become live and lowered after they died, so that weights never count with too few.
struct alignas(kCacheLineBytes) TaskRows {
  std::atomic<std::int64_t> live{0};
};

struct RowPriority {
  std::int64_t id;
  double priority;
};

struct Statistics {
  std::uint64_t live_rows = 0;
  std::uint64_t appended_steps = 0;
  std::uint64_t stale_updates = 0;
  std::uint64_t clamped_weights = 0;
  std::uint64_t redraws = 0;
  std::uint64_t scans = 0;
  double max_priority = 0.0;
};

template <class Sync>
class Replay {
 public:
  explicit Replay(const ReplayConfig& config);

  const ReplayConfig& config() const noexcept { return storage_.config(); }
  LaneStorage<Sync>& storage() noexcept { return storage_; }
  PriorityIndex<Sync>& index(std::size_t sampler) const noexcept { return *indexes_[sampler]; }

  // All rows or none: throws std::invalid_argument before anything has changed.
  void append(const AppendIn& in);

  // Fills `num_rows` places of `out`. Throws std::runtime_error when there is nothing to draw.
  void sample(std::size_t sampler, std::size_t num_rows, const SampleOptions& options,
              const BatchOut& out);

  // accepted[i]: row i was live and now has the new priority. Throws before the first change when
  // an id was never issued or a priority is not finite and >= 0.
  void update(std::size_t sampler, std::span<const std::int64_t> ids,
              std::span<const float> priorities, bool* accepted);

  // The rows of these ids, weight 1. Throws std::out_of_range when one is not live.
  void read(std::span<const std::int64_t> ids, const BatchOut& out);

  // Drops every row; ids go on from where they were. An append to every lane, as to threads.
  void clear();
  // The same under the caller's claim of all lanes.
  void clear_claimed() noexcept;

  // Rows that became live (above zero) or died; before the first and after the last of them.
  void count_live(std::uint32_t lane, std::int64_t rows) noexcept {
    if (rows == 0) return;
    Sync::fetch_add(task_rows_[indexes_[0]->task_of(lane)].live, rows, std::memory_order_relaxed);
  }

  std::uint64_t live_rows() const noexcept;
  std::vector<RowPriority> priorities(std::size_t sampler) const;
  Statistics statistics(std::size_t sampler) const;

  // At rest: what is wrong with sums, census and counters, or nothing.
  std::string check_valid() const;

  std::uint64_t seed() const noexcept { return seed_; }
  void set_seed(std::uint64_t seed) noexcept { seed_ = seed; }

  // Claims lanes for one writer, all or none, and lets them go at the end of the scope.
  class LaneClaim {
   public:
    LaneClaim(Replay& replay, std::span<const std::int64_t> lanes, const char* function);
    ~LaneClaim() { release(); }
    LaneClaim(const LaneClaim&) = delete;
    LaneClaim& operator=(const LaneClaim&) = delete;

   private:
    void release() noexcept;
    Replay& replay_;
    std::span<const std::int64_t> lanes_;
    std::size_t claimed_ = 0;
  };
  std::vector<std::int64_t> all_lanes() const;

 private:
  struct Draw;

  void append_step(std::uint32_t lane, const StepIn& step) noexcept;
  // Returns whether the row was live.
  bool kill(std::uint32_t lane, std::uint64_t step) noexcept;
  // Checks an id's form and that its lane has come so far.
  RowId issued_row(std::int64_t id, const char* function, std::size_t i) const;
  bool is_live(RowId row) const noexcept;
  static void descend(PriorityIndex<Sync>& index, std::vector<Draw>& draws) noexcept;
  bool resolve(PriorityIndex<Sync>& index, const Draw& draw, RowId& row) const noexcept;
  void normalize(PriorityIndex<Sync>& index, const SampleOptions& options,
                 std::span<const double> ratios, float* weights) const;

  LaneStorage<Sync> storage_;
  std::vector<std::unique_ptr<PriorityIndex<Sync>>> indexes_;
  std::vector<TaskRows> task_rows_;
  std::uint64_t seed_;
};

extern template class Replay<DirectSync>;

}  // namespace fastdistill::replay
