// SPDX-License-Identifier: MIT
// Spells "inline here, on host and device" for headers that the C++ compiler and nvcc share.
#pragma once

#if defined(__CUDACC__)
#define FASTDISTILL_HD __host__ __device__ __forceinline__
#else
#define FASTDISTILL_HD __attribute__((always_inline)) inline
#endif

// A header compiled with several instruction sets must not share weak symbols between them: the
// linker would keep one copy, perhaps the AVX-512 one, for every CPU. Each build names its own.
#if !defined(FASTDISTILL_ISA)
#define FASTDISTILL_ISA portable
#endif
