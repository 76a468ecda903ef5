// SPDX-License-Identifier: MIT
#define FASTDISTILL_ISA avx2
#define FASTDISTILL_VECTOR_BYTES 32
#include "frames/float_kernels.inl"
