// SPDX-License-Identifier: MIT
#define FASTDISTILL_ISA avx512
#define FASTDISTILL_VECTOR_BYTES 64
#include "frames/float_kernels.inl"
