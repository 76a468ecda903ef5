// SPDX-License-Identifier: MIT
// libFuzzer's target: any bytes are refused as an invalid argument, or load into a replay that
// agrees with itself and whose own snapshot loads again.
//
// `fuzz_snapshot --make-seeds FOLDER` writes a few intact snapshots instead; `make stress` runs
// both. Checksums are constant in this program, for libFuzzer cannot guess them, and what is behind
// them is what is to be tested.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/crc32c.h"
#include "replay/snapshot.h"

namespace fastdistill {

std::uint32_t crc32c(const void*, std::size_t, std::uint32_t) noexcept { return 0; }

namespace {

using Replay = replay::Replay<replay::DirectSync>;

const std::string kSchema = "{}";

replay::ReplayConfig config() {
  return {.lane_capacity_steps = 12,
          .num_lanes = 2,
          .lanes_per_task = {1, 1},
          .frame_bytes = 9,
          .column_bytes = {5},
          .stack = 3,
          .n_step = 2,
          .discount = 0.5,
          .repeat_first_frame = false,
          .samplers = {{}, {.priority_exponent = 0.0}},
          .seed = 7};
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz_snapshot: %s\n", what);
  std::abort();
}

int file_in_memory() {
  const int file = ::memfd_create("snapshot", 0);
  require(file >= 0, "memfd_create failed");
  return file;
}

void append(Replay& target, int step) {
  const std::vector<std::int64_t> lanes{0, 1}, action(2, step);
  const std::vector<float> reward(2, 1.0F);
  const std::vector<std::byte> frame(2 * 9, static_cast<std::byte>(step)), column(2 * 5);
  const bool boundary[2] = {step % 5 == 0, step % 7 == 0}, none[2] = {false, false};
  target.append({.lanes = lanes,
                 .frame = frame.data(),
                 .action = action.data(),
                 .reward = reward.data(),
                 .terminated = none,
                 .truncated = none,
                 .boundary = boundary,
                 .columns = {column.data()}});
}

// All of it is read, so that AddressSanitizer sees where it lies.
void read_all(Replay& target) {
  for (const auto& row : target.priorities(0)) {
    std::vector<std::byte> obs(27), next_obs(27), column(5);
    std::int64_t action = 0, id = 0, task = 0;
    float reward = 0, discount = 0, weight = 0;
    target.read({&row.id, 1}, {.obs = obs.data(),
                               .next_obs = next_obs.data(),
                               .action = &action,
                               .id = &id,
                               .task = &task,
                               .reward = &reward,
                               .discount = &discount,
                               .weight = &weight,
                               .columns = {column.data()}});
    require(id == row.id, "a row came under another id");
  }
}

void load_and_use(int file) {
  Replay target(config());
  for (int step = 0; step < 20; ++step) append(target, step);
  require(::lseek(file, 0, SEEK_SET) == 0, "lseek failed");
  try {
    replay::load_snapshot(target, file, kSchema);
  } catch (const std::invalid_argument&) {
    require(target.live_rows() > 0, "a refused file changed the replay");
    return;
  }
  require(target.check_valid().empty(), "a loaded replay disagrees with itself");
  read_all(target);
  const int again = file_in_memory();
  replay::save_snapshot(target, again, kSchema);
  require(::lseek(again, 0, SEEK_SET) == 0, "lseek failed");
  Replay copy(config());
  replay::load_snapshot(copy, again, kSchema);
  ::close(again);
  require(copy.live_rows() == target.live_rows(), "a save and a load lost rows");
  for (int step = 0; step < 30; ++step) append(target, step);
  require(target.check_valid().empty(), "a loaded replay did not go on");
}

void write_seed(const std::string& folder, int steps) {
  Replay target(config());
  for (int step = 0; step < steps; ++step) append(target, step);
  std::FILE* out = std::fopen((folder + "/" + std::to_string(steps)).c_str(), "wb");
  require(out != nullptr, "the folder of the seeds must be there");
  replay::save_snapshot(target, ::fileno(out), kSchema);
  std::fclose(out);
}

}  // namespace
}  // namespace fastdistill

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc != 3 || std::strcmp((*argv)[1], "--make-seeds") != 0) return 0;
  for (const int steps : {0, 1, 6, 40}) fastdistill::write_seed((*argv)[2], steps);
  std::exit(0);
}

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const int file = fastdistill::file_in_memory();
  fastdistill::require(::write(file, data, size) == static_cast<ssize_t>(size), "write failed");
  fastdistill::load_and_use(file);
  ::close(file);
  return 0;
}
