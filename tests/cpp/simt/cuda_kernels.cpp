// SPDX-License-Identifier: MIT
// The CUDA kernels as C++, unchanged: cuda_platform.h finds no nvcc and includes simt.h instead.
#include "losses/cuda_distill.cu"
