// SPDX-License-Identifier: MIT
// The replay as everybody but a test uses it.
#include "replay/replay_impl.h"

namespace fastdistill::replay {

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic_ref<std::int64_t>::is_always_lock_free);

template class Replay<DirectSync>;

}  // namespace fastdistill::replay
