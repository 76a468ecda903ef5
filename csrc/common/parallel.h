// SPDX-License-Identifier: MIT
// Parallel loops on the host program's thread pool. The Python extension passes torch's pool in, so
// that torch.set_num_threads holds here too and no second OpenMP runtime is loaded; without one,
// loops run on the calling thread.
#pragma once

#include <cstdint>

namespace fastdistill {

using ParallelBody = void (*)(std::int64_t begin, std::int64_t end, void* context);
using ParallelFor = int (*)(std::int64_t begin, std::int64_t end, std::int64_t grain_size,
                            ParallelBody body, void* context);

// `loop` must outlive every later call; null returns to the calling thread.
void set_parallel_for(ParallelFor loop);

// Calls body on disjoint ranges that cover [0, count). What a body throws on any thread reaches the
// caller, the first of several; the loop's other ranges may or may not have been done then.
void parallel_for(std::int64_t count, ParallelBody body, void* context);

}  // namespace fastdistill
