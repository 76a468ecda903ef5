// SPDX-License-Identifier: MIT
// Reading and writing snapshots. One walk over a file serves both the verification and the load,
// so nothing is applied that was not checked in the same way before.
#include "replay/snapshot.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <system_error>

#include "common/crc32c.h"

namespace fastdistill::replay {
namespace {

constexpr char kMagic[8] = {'F', 'D', 'R', 'E', 'P', 'L', 'A', 'Y'};
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kBlockBytes = std::size_t{4} << 20;
constexpr std::size_t kMaxSchemaBytes = std::size_t{1} << 20;

enum class Block : std::uint32_t { kRows = 1, kTrailer = 2 };

// A row's state beside its weight: its tag less the lap's first.
constexpr std::uint32_t kNotYetLive = 0, kLive = 1;

struct LaneRun {
  std::uint64_t first = 0, end = 0;
};

struct RowsHeader {
  Block kind = Block::kRows;
  std::uint32_t lane = 0;
  std::uint64_t first = 0, count = 0;
};

// One checksummed piece of the file on its way out.
class Piece {
 public:
  template <class T>
  void put(const T& value) {
    put_bytes(&value, sizeof value);
  }
  void put_bytes(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), bytes, bytes + size);
  }
  std::byte* grow(std::size_t size) {
    bytes_.resize(bytes_.size() + size);
    return bytes_.data() + bytes_.size() - size;
  }
  void write_and_reset(int file) {
    put(crc32c(bytes_.data(), bytes_.size()));
    const std::byte* at = bytes_.data();
    for (std::size_t left = bytes_.size(); left > 0;) {
      const ssize_t written = ::write(file, at, left);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw std::system_error(errno, std::generic_category(), "save");
      at += written;
      left -= static_cast<std::size_t>(written);
    }
    bytes_.clear();
  }
  void reset() { bytes_.clear(); }

 private:
  std::vector<std::byte> bytes_;
};

[[noreturn]] void refuse(const std::string& why) {
  throw std::invalid_argument("load: file must be an intact snapshot, got " + why);
}

// The file on its way in: reads bytes, sums them up, compares at the end of a piece.
class PieceReader {
 public:
  explicit PieceReader(int file) : file_(file) {}

  void get_bytes(void* to, std::size_t size) {
    read_exactly(to, size);
    crc_ = crc32c(to, size, crc_);
  }
  template <class T>
  T get() {
    T value;
    get_bytes(&value, sizeof value);
    return value;
  }
  void finish(const char* piece) {
    std::uint32_t expected;
    read_exactly(&expected, sizeof expected);
    if (expected != crc_) refuse(std::string("a wrong checksum of the ") + piece);
    crc_ = 0;
  }
  void expect_end() {
    std::byte extra;
    if (read_some(&extra, 1) != 0) refuse("more bytes than it should have");
  }

 private:
  std::size_t read_some(void* to, std::size_t size) {
    while (true) {
      const ssize_t got = ::read(file_, to, size);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw std::system_error(errno, std::generic_category(), "load");
      return static_cast<std::size_t>(got);
    }
  }
  void read_exactly(void* to, std::size_t size) {
    auto* at = static_cast<std::byte*>(to);
    while (size > 0) {
      const std::size_t got = read_some(at, size);
      if (got == 0) refuse("fewer bytes than it should have");
      at += got;
      size -= got;
    }
  }

  int file_;
  std::uint32_t crc_ = 0;
};

using DirectReplay = Replay<DirectSync>;

struct Header {
  std::uint64_t seed = 0, sample_calls = 0;
  std::vector<std::uint32_t> max_weights;
};

struct RowsBlock {
  RowsHeader at;
  std::vector<std::byte> slots;
  std::vector<std::uint64_t> states;  // [sampler][count]: {state, weight}
};

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
      const std::uint32_t state = leaf_tag(word) - (live_tag(storage.lap_of(step)) - 1);
      piece.put(leaf_word(state, leaf_weight(word)));
    }
  }
  finish_shared_reads();
  return storage.intact(at.lane, static_cast<std::int64_t>(at.first));
}

LaneRun save_lane(DirectReplay& replay, std::uint32_t lane_index, int file) {
  const Lane& lane = replay.storage().lane(lane_index);
  const SlotLayout& layout = replay.storage().layout();
  LaneRun run;
  run.end = lane.end.load(std::memory_order_acquire);
  run.first = std::max(run.end - std::min(run.end, layout.slots_per_lane),
                       lane.floor.load(std::memory_order_acquire));
  const std::uint64_t rows_per_block = std::max<std::uint64_t>(1, kBlockBytes / layout.slot_bytes);
  const off_t start = ::lseek(file, 0, SEEK_CUR);
  Piece piece;
  for (std::uint64_t step = run.first; step < run.end;) {
    const std::uint64_t count = std::min(rows_per_block, run.end - step);
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
  std::string found(schema_bytes, '\0');
  in.get_bytes(found.data(), found.size());
  Header header{
      .seed = in.get<std::uint64_t>(), .sample_calls = in.get<std::uint64_t>(), .max_weights = {}};
  const auto samplers = in.get<std::uint64_t>();
  if (samplers > kMaxSchemaBytes) refuse("a damaged header");
  for (std::uint64_t s = 0; s < samplers; ++s)
    header.max_weights.push_back(in.get<std::uint32_t>());
  in.finish("header");
  if (found != schema || samplers != replay.config().samplers.size()) {
    throw std::invalid_argument("load: file must be a snapshot of a replay with options " + schema +
                                ", got " + found);
  }
  return header;
}

// Reads a whole snapshot, checking every byte, and shows its blocks in order.
std::vector<LaneRun> walk(int file, const DirectReplay& replay, const std::string& schema,
                          Header& header, const std::function<void(const RowsBlock&)>& visit) {
  const ReplayConfig& config = replay.config();
  const SlotLayout layout(config);
  PieceReader in(file);
  header = read_header(in, replay, schema);
  std::vector<LaneRun> runs(config.num_lanes);
  RowsBlock block;
  while (in.get<Block>() == Block::kRows) {
    block.at = {};
    block.at.lane = in.get<std::uint32_t>();
    block.at.first = in.get<std::uint64_t>();
    block.at.count = in.get<std::uint64_t>();
    if (block.at.lane >= config.num_lanes || block.at.count == 0 ||
        block.at.count > layout.slots_per_lane || block.at.first > kStepMask) {
      refuse("a damaged block");
    }
    LaneRun& run = runs[block.at.lane];
    if (run.end == 0) run = {block.at.first, block.at.first};
    if (run.end != block.at.first) refuse("blocks out of order");
    run.end += block.at.count;
    if (run.end - run.first > layout.slots_per_lane) refuse("more rows than a lane holds");
    block.slots.resize(block.at.count * layout.slot_bytes);
    in.get_bytes(block.slots.data(), block.slots.size());
    block.states.resize(block.at.count * config.samplers.size());
    in.get_bytes(block.states.data(), 8 * block.states.size());
    in.finish("rows");
    visit(block);
  }
  for (const LaneRun& seen : runs) {
    const auto stated = in.get<LaneRun>();
    const bool empty = stated.first == stated.end && seen.end == 0;
    if (!empty && (stated.first != seen.first || stated.end != seen.end)) {
      refuse("blocks missing");
    }
    runs[static_cast<std::size_t>(&seen - runs.data())] = stated;
  }
  in.finish("trailer");
  in.expect_end();
  return runs;
}

// Gives a lane whose slots are in place its cursors, its tracker and its live rows.
void restore_lane(DirectReplay& replay, std::uint32_t lane_index, const LaneRun& run,
                  const std::vector<std::vector<std::uint64_t>>& states) {
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
  for (std::uint64_t step = run.first; step < run.end; ++step) {
    const auto complete =
        lane.tracker.arrive(step, storage.record(lane_index, storage.slot_of(step)), config.n_step);
    for (std::uint64_t row = complete.first; row < complete.last; ++row) {
      const StepRecord record = storage.record(lane_index, storage.slot_of(row));
      const std::uint64_t history = std::min<std::uint64_t>(record.age, config.stack - 1);
      if (row + config.lane_capacity_steps < run.end || row < run.first + history) continue;
      // A row may have been killed between the looks at two samplers' leaves: then it is dead.
      const auto was_killed = [&](const auto& of_sampler) {
        const std::uint32_t state = leaf_tag(of_sampler[row - run.first]);
        return state != kNotYetLive && state != kLive;
      };
      if (std::any_of(states.begin(), states.end(), was_killed)) continue;
      for (std::size_t s = 0; s < states.size(); ++s) {
        const std::uint64_t slot = storage.slot_of(row), lap = storage.lap_of(row);
        const std::uint64_t word = states[s][row - run.first];
        if (leaf_tag(word) == kLive) {
          replay.index(s).set(lane_index, slot, lap, leaf_weight(word));
        } else {
          replay.index(s).enable(lane_index, slot, lap, record.priority);
        }
      }
      lane.live_rows.fetch_add(1, std::memory_order_relaxed);
    }
  }
}

}  // namespace

void save_snapshot(DirectReplay& replay, int file, const std::string& schema) {
  Piece piece;
  piece.put(kMagic);
  piece.put(kVersion);
  piece.put(std::uint64_t{schema.size()});
  piece.put_bytes(schema.data(), schema.size());
  piece.put(replay.seed());
  piece.put(replay.sample_calls());
  piece.put(std::uint64_t{replay.config().samplers.size()});
  for (std::size_t s = 0; s < replay.config().samplers.size(); ++s) {
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
  Header header;
  walk(file, replay, schema, header, [](const RowsBlock&) {});
  if (::lseek(file, start, SEEK_SET) < 0) {
    throw std::system_error(errno, std::generic_category(), "load");
  }
  replay.clear();
  LaneStorage<DirectSync>& storage = replay.storage();
  const std::size_t num_samplers = replay.config().samplers.size();
  std::vector<std::vector<std::vector<std::uint64_t>>> states(
      replay.config().num_lanes, std::vector<std::vector<std::uint64_t>>(num_samplers));
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
  for (std::uint32_t lane = 0; lane < replay.config().num_lanes; ++lane) {
    restore_lane(replay, lane, runs[lane], states[lane]);
  }
  for (std::size_t s = 0; s < num_samplers; ++s) {
    replay.index(s).set_max_weight(header.max_weights[s]);
  }
  replay.set_random_state(header.seed, header.sample_calls);
}

}  // namespace fastdistill::replay
