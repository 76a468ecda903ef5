// SPDX-License-Identifier: MIT
// Snapshots: what a replay holds as a stream of checksummed blocks, in a file the caller opened.
//
//   header   magic, version, schema text, random state, largest weights     | crc
//   block*   lane, first step, count, slots as in memory, leaf words        | crc
//   trailer  first and end step of every lane's run of blocks               | crc
//
// Integers are little-endian. The schema is whatever text the caller keeps its options in; it must
// be the same to load as it was to save.
#pragma once

#include <string>

#include "replay/replay.h"

namespace fastdistill::replay {

// Writes at the file's position. May run beside appends, samples and updates, and stops none of
// them: it reads like a sampler and keeps, per lane, the newest unbroken run of steps.
// Throws std::system_error when the file cannot be written.
void save_snapshot(Replay<DirectSync>& replay, int file, const std::string& schema);

// Verifies the whole file, then replaces what the replay holds. Throws std::invalid_argument, with
// the replay unchanged, unless the file is an intact snapshot of the same schema whose every value
// a replay can have written; memory is taken for what is in the file, not for what it claims.
// Nothing else may use the replay meanwhile; an append gets an error.
void load_snapshot(Replay<DirectSync>& replay, int file, const std::string& schema);

}  // namespace fastdistill::replay
