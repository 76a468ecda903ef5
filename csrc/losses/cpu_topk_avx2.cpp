// SPDX-License-Identifier: MIT
#define FASTDISTILL_ISA isa_avx2
#include "losses/cpu_topk.inl"
