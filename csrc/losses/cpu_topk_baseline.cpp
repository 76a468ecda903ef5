// SPDX-License-Identifier: MIT
#define FASTDISTILL_ISA isa_baseline
#include "losses/cpu_topk.inl"
