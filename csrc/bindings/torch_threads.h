// SPDX-License-Identifier: MIT
#pragma once

namespace fastdistill {

// Runs our loops on the thread pool of the torch that this process has loaded. False when it has
// none; loops then run on the calling thread.
bool use_torch_threads();

}  // namespace fastdistill
