// SPDX-License-Identifier: MIT
#define FASTDISTILL_ISA isa_avx512
#include "losses/cpu_topk.inl"
