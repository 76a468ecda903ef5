// SPDX-License-Identifier: MIT
// The way from this module to the CUDA kernels of fastdistill._cuda, which is loaded when the first
// CUDA tensor arrives: everything else must work on machines without a driver.
#pragma once

#include <cstdint>

#include "losses/loss_args.h"

namespace fastdistill {

void distill_on_cuda(const DistillArgs& args, std::int32_t device_index);
void topk_on_cuda(const TopkArgs& args, std::int32_t device_index);
void td_on_cuda(const TdArgs& args, std::int32_t device_index);

}  // namespace fastdistill
