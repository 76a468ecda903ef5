// SPDX-License-Identifier: MIT
// The float convolutions with AVX-512's vectors, in AVX2's instructions: their loops and tails are
// tested on machines without AVX-512, too.
#define FASTDISTILL_ISA wide
#define FASTDISTILL_VECTOR_BYTES 64
#include "frames/float_kernels.inl"
