// SPDX-License-Identifier: MIT
// Reading and writing snapshots. One walk over a file serves both the verification and the load,
// so nothing is applied that was not checked in the same way before.
#include "replay/snapshot.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <system_error>

#include "replay/snapshot_pieces.h"

namespace fastdistill::replay {
namespace {

constexpr char kMagic[8] = {'F', 'D', 'R', 'E', 'P', 'L', 'A', 'Y'};
constexpr std::uint32_t kVersion = 2;
constexpr std::size_t kBlockBytes = std::size_t{4} << 20;
constexpr std::size_t kMaxSchemaBytes = std::size_t{1} << 20;

enum class Block : std::uint32_t { kRows = 1, kTrailer = 2 };

// A row's state beside its weight: its tag less the lap's first.
constexpr std::uint32_t kNotYetLive = 0, kLive = 1, kKilled = 2;

// The last step that a file may claim: what comes after it still fits in an id.
constexpr std::uint64_t kMaxEnd = (kStepMask + 1) / 2;

struct RowsHeader {
  Block kind = Block::kRows;
  std::uint32_t lane = 0;
  std::uint64_t first = 0, count = 0;
};

using DirectReplay = Replay<DirectSync>;

struct SamplerHeader {
  std::uint64_t calls = 0;
  std::uint32_t max_weight = 0;
};

struct Header {
  std::uint64_t seed = 0;
  std::vector<SamplerHeader> samplers;
};

struct RowsBlock {
  RowsHeader at;
  std::vector<std::byte> slots;
  std::vector<std::uint64_t> states;  // [sampler][count]: {state, weight}
  std::uint64_t run_first = 0;        // of the lane's unbroken run of blocks
};

std::uint64_t rows_per_block(const SlotLayout& layout) {
  return std::max<std::uint64_t>(1, kBlockBytes / layout.slot_bytes);
}

std::uint32_t state_of(std::uint64_t word, std::uint64_t lap) {
  const std::uint32_t state = leaf_tag(word) - (live_tag(lap) - 1);
  // Behind a load a leaf may still have the tag of what was there before.
  return state <= kKilled ? state : kNotYetLive;
}

// Copies steps [first, first + count) of a lane; false when its writer overtook the copy.
bool copy_rows(DirectReplay& replay, const RowsHeader& at, Piece& piece) {
  LaneStorage<DirectSync>& storage = replay.storage();
  const std::size_t slot_bytes = storage.layout().slot_bytes;
  piece.put(at);
  std::byte* to = piece.grow(at.count * slot_bytes);
  for (std::uint64_t step = at.first; step < at.first + at.count; ++step, to += slot_bytes) {
    read_shared(to, storage.slot(at.lane, storage.slot_of(step)), slot_bytes);
  }
  for (std::size_t s = 0; s < replay.config().samplers.size(); ++s) {
    for (std::uint64_t step = at.first; step < at.first + at.count; ++step) {
      const std::uint64_t word = replay.index(s).load(at.lane, storage.slot_of(step));
      piece.put(leaf_word(state_of(word, storage.lap_of(step)), leaf_weight(word)));
    }
  }
  finish_shared_reads();
  return storage.intact(at.lane, static_cast<std::int64_t>(at.first));
}

LaneRun save_lane(DirectReplay& replay, std::uint32_t lane_index, int file) {
  const SlotLayout& layout = replay.storage().layout();
  LaneRun run = held_steps(replay.storage().lane(lane_index), layout.slots_per_lane);
  const off_t start = ::lseek(file, 0, SEEK_CUR);
  Piece piece;
  for (std::uint64_t step = run.first; step < run.end;) {
    const std::uint64_t count = std::min(rows_per_block(layout), run.end - step);
    if (copy_rows(replay, {.lane = lane_index, .first = step, .count = count}, piece)) {
      piece.write_and_reset(file);
    } else {
      // What was written before is older still: begin the lane again behind the gap.
      piece.reset();
      if (::lseek(file, start, SEEK_SET) < 0) {
        throw std::system_error(errno, std::generic_category(), "save");
      }
      run.first = step + count;
    }
    step += count;
  }
  return run;
}

Header read_header(PieceReader& in, const DirectReplay& replay, const std::string& schema) {
  char magic[sizeof kMagic];
  in.get_bytes(magic, sizeof magic);
  if (std::memcmp(magic, kMagic, sizeof magic) != 0) refuse("another kind of file");
  if (const auto version = in.get<std::uint32_t>(); version != kVersion) {
    refuse("format version " + std::to_string(version));
  }
  const auto schema_bytes = in.get<std::uint64_t>();
  if (schema_bytes > kMaxSchemaBytes) refuse("a damaged header");
  in.require(schema_bytes);
  std::string found(schema_bytes, '\0');
  in.get_bytes(found.data(), found.size());
  const auto is_text = [](char c) { return c >= ' ' && c <= '~'; };
  if (!std::all_of(found.begin(), found.end(), is_text)) refuse("a damaged header");
  Header header{.seed = in.get<std::uint64_t>(), .samplers = {}};
  const auto samplers = in.get<std::uint64_t>();
  if (samplers > kMaxSchemaBytes) refuse("a damaged header");
  in.require(samplers * (sizeof(std::uint64_t) + sizeof(std::uint32_t)));
  for (std::uint64_t s = 0; s < samplers; ++s) {
    const auto calls = in.get<std::uint64_t>();
    header.samplers.push_back({.calls = calls, .max_weight = in.get<std::uint32_t>()});
  }
  in.finish("header");
  if (found != schema || samplers != replay.config().samplers.size()) {
    throw std::invalid_argument("load: file must be a snapshot of a replay with options " + schema +
                                ", got " + found);
  }
  // It starts at 1 and only grows.
  for (const auto [calls, weight] : header.samplers) {
    if (weight < static_cast<std::uint32_t>(kWeightOne)) refuse("a largest priority below 1");
  }
  return header;
}

// What no replay can have written, whatever its checksum says.
void check_block(const RowsBlock& block, const SlotLayout& layout, std::uint16_t& next_age) {
  for (std::uint64_t i = 0; i < block.at.count; ++i) {
    StepRecord record;
    const std::byte* at = block.slots.data() + i * layout.slot_bytes + layout.record_offset;
    std::memcpy(&record, at, sizeof record);
    const bool has_priority = !std::isnan(record.priority);
    if (has_priority && !(record.priority >= 0.0F && std::isfinite(record.priority))) {
      refuse("a priority that is not finite and >= 0");
    }
    if (record.terminated > 1 || record.truncated > 1 || record.boundary > 1) {
      refuse("a flag that is neither true nor false");
    }
    const bool is_first = block.at.first + i == block.run_first;
    if (!is_first && record.age != next_age) refuse("a step out of its episode");
    next_age = record.boundary != 0
                   ? std::uint16_t{0}
                   : static_cast<std::uint16_t>(std::min<int>(record.age + 1, kMaxAge));
  }
  for (const std::uint64_t word : block.states) {
    if (leaf_tag(word) > kKilled) refuse("a row in an unknown state");
    if (leaf_tag(word) != kLive && leaf_weight(word) != 0) refuse("a weight of a row not live");
  }
}

// Reads a whole snapshot, checking every byte, and shows its blocks in order.
std::vector<LaneRun> walk(int file, const DirectReplay& replay, const std::string& schema,
                          Header& header, const std::function<void(const RowsBlock&)>& visit) {
  const ReplayConfig& config = replay.config();
  const SlotLayout layout(config);
  PieceReader in(file);
  header = read_header(in, replay, schema);
  std::vector<LaneRun> runs(config.num_lanes);
  std::vector<std::uint16_t> next_ages(config.num_lanes);
  RowsBlock block;
  while (in.get<Block>() == Block::kRows) {
    block.at = {};
    block.at.lane = in.get<std::uint32_t>();
    block.at.first = in.get<std::uint64_t>();
    block.at.count = in.get<std::uint64_t>();
    if (block.at.lane >= config.num_lanes || block.at.count == 0 ||
        block.at.count > rows_per_block(layout) || block.at.first > kMaxEnd) {
      refuse("a damaged block");
    }
    LaneRun& run = runs[block.at.lane];
    if (run.end == 0) run = {block.at.first, block.at.first};
    if (run.end != block.at.first) refuse("blocks out of order");
    run.end += block.at.count;
    if (run.end > kMaxEnd) refuse("more steps than can be counted");
    if (run.end - run.first > layout.slots_per_lane) refuse("more rows than a lane holds");
    in.require(block.at.count * (layout.slot_bytes + 8 * config.samplers.size()));
    block.slots.resize(block.at.count * layout.slot_bytes);
    in.get_bytes(block.slots.data(), block.slots.size());
    block.states.resize(block.at.count * config.samplers.size());
    in.get_bytes(block.states.data(), 8 * block.states.size());
    in.finish("rows");
    block.run_first = run.first;
    check_block(block, layout, next_ages[block.at.lane]);
    visit(block);
  }
  for (const LaneRun& seen : runs) {
    const auto stated = in.get<LaneRun>();
    const bool empty = stated.first == stated.end && seen.end == 0;
    if (stated.end > kMaxEnd) refuse("more steps than can be counted");
    if (!empty && (stated.first != seen.first || stated.end != seen.end)) {
      refuse("blocks missing");
    }
    runs[static_cast<std::size_t>(&seen - runs.data())] = stated;
  }
  in.finish("trailer");
  in.expect_end();
  return runs;
}

// Leaf words as they were read, [lane][sampler][step].
using LeafStates = std::vector<std::vector<std::vector<std::uint64_t>>>;

// The largest ever given, of a sampler. The header is written first: updates beside the save may
// have given the rows larger ones.
std::uint32_t largest_weight(const Header& header, const LeafStates& states, std::size_t sampler) {
  std::uint32_t largest = header.samplers[sampler].max_weight;
  for (const auto& of_lane : states) {
    for (const std::uint64_t word : of_lane[sampler]) {
      largest = std::max(largest, leaf_weight(word));
    }
  }
  return largest;
}

// Gives a lane whose slots are in place its cursors, its tracker and its live rows.
void restore_lane(DirectReplay& replay, std::uint32_t lane_index, const LaneRun& run,
                  const LeafStates::value_type& states) {
  LaneStorage<DirectSync>& storage = replay.storage();
  const ReplayConfig& config = replay.config();
  Lane& lane = storage.lane(lane_index);
  lane.begin.store(run.end, std::memory_order_relaxed);
  lane.end.store(run.end, std::memory_order_release);
  lane.floor.store(run.first, std::memory_order_relaxed);
  lane.tracker = WindowTracker(run.first);
  if (run.first < run.end) {
    lane.tracker =
        WindowTracker(run.first, storage.record(lane_index, storage.slot_of(run.first)).age);
  }
  std::int64_t live = 0;
  for (std::uint64_t step = run.first; step < run.end; ++step) {
    const auto complete =
        lane.tracker.arrive(step, storage.record(lane_index, storage.slot_of(step)), config.n_step);
    for (std::uint64_t row = complete.first; row < complete.last; ++row) {
      const StepRecord record = storage.record(lane_index, storage.slot_of(row));
      const std::uint64_t history = std::min<std::uint64_t>(record.age, config.stack - 1);
      // A row may have been killed between the looks at two samplers' leaves: then it is dead.
      const auto was_killed = [&](const auto& of_sampler) {
        const std::uint32_t state = leaf_tag(of_sampler[row - run.first]);
        return state != kNotYetLive && state != kLive;
      };
      const std::uint64_t slot = storage.slot_of(row), lap = storage.lap_of(row);
      if (row + config.lane_capacity_steps < run.end || row < run.first + history ||
          std::any_of(states.begin(), states.end(), was_killed)) {
        // So that the next snapshot knows it, too.
        for (std::size_t s = 0; s < states.size(); ++s) replay.index(s).kill(lane_index, slot, lap);
        continue;
      }
      for (std::size_t s = 0; s < states.size(); ++s) {
        const std::uint64_t word = states[s][row - run.first];
        if (leaf_tag(word) == kLive) {
          replay.index(s).set(lane_index, slot, lap, leaf_weight(word));
        } else {
          replay.index(s).enable(lane_index, slot, lap, record.priority);
        }
      }
      ++live;
    }
  }
  replay.count_live(lane_index, live);
}

}  // namespace

void save_snapshot(DirectReplay& replay, int file, const std::string& schema) {
  Piece piece;
  piece.put(kMagic);
  piece.put(kVersion);
  piece.put(std::uint64_t{schema.size()});
  piece.put_bytes(schema.data(), schema.size());
  piece.put(replay.seed());
  piece.put(std::uint64_t{replay.config().samplers.size()});
  for (std::size_t s = 0; s < replay.config().samplers.size(); ++s) {
    piece.put(replay.index(s).calls());
    piece.put(replay.index(s).max_weight());
  }
  piece.write_and_reset(file);
  std::vector<LaneRun> runs;
  runs.reserve(replay.config().num_lanes);
  for (std::uint32_t lane = 0; lane < replay.config().num_lanes; ++lane) {
    runs.push_back(save_lane(replay, lane, file));
  }
  piece.put(Block::kTrailer);
  for (const LaneRun& run : runs) piece.put(run);
  piece.write_and_reset(file);
  // A lane begun again may have left older bytes behind the trailer.
  if (::ftruncate(file, ::lseek(file, 0, SEEK_CUR)) != 0) {
    throw std::system_error(errno, std::generic_category(), "save");
  }
}

void load_snapshot(DirectReplay& replay, int file, const std::string& schema) {
  const off_t start = ::lseek(file, 0, SEEK_CUR);
  // From here on, so that a thread that appends meanwhile gets an error and not this one's lanes.
  const auto lanes = replay.all_lanes();
  const DirectReplay::LaneClaim claim(replay, lanes, "load");
  Header header;
  const auto stated = walk(file, replay, schema, header, [](const RowsBlock&) {});
  // All that is needed is taken while nothing has changed yet.
  const std::size_t num_samplers = replay.config().samplers.size();
  LeafStates states(replay.config().num_lanes,
                    std::vector<std::vector<std::uint64_t>>(num_samplers));
  for (std::size_t lane = 0; lane < states.size(); ++lane) {
    for (auto& of_sampler : states[lane]) {
      of_sampler.reserve(stated[lane].end - stated[lane].first);
    }
  }
  if (::lseek(file, start, SEEK_SET) < 0) {
    throw std::system_error(errno, std::generic_category(), "load");
  }
  replay.clear_claimed();
  LaneStorage<DirectSync>& storage = replay.storage();
  const auto runs = walk(file, replay, schema, header, [&](const RowsBlock& block) {
    const std::size_t slot_bytes = storage.layout().slot_bytes;
    for (std::uint64_t i = 0; i < block.at.count; ++i) {
      DirectSync::write_shared(storage.slot(block.at.lane, storage.slot_of(block.at.first + i)),
                               block.slots.data() + i * slot_bytes, slot_bytes);
    }
    for (std::size_t s = 0; s < num_samplers; ++s) {
      const auto* from = block.states.data() + s * block.at.count;
      auto& to = states[block.at.lane][s];
      to.insert(to.end(), from, from + block.at.count);
    }
  });
  // Before the rows, for some of them may begin with the largest priority.
  for (std::size_t s = 0; s < num_samplers; ++s) {
    replay.index(s).set_calls(header.samplers[s].calls);
    replay.index(s).set_max_weight(largest_weight(header, states, s));
  }
  for (std::uint32_t lane = 0; lane < replay.config().num_lanes; ++lane) {
    restore_lane(replay, lane, runs[lane], states[lane]);
  }
  replay.set_seed(header.seed);
}

}  // namespace fastdistill::replay
