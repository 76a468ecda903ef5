// SPDX-License-Identifier: MIT
#include <cstring>

#include "frames/kernels.h"

namespace fastdistill::frames {

#if defined(__x86_64__)

namespace avx2 {
extern const Kernels<float> kKernels;
}
namespace avx512 {
extern const Kernels<float> kKernels;
}
namespace avx512bf16 {
extern const Kernels<std::uint16_t> kKernels;
}

const Kernels<std::uint16_t>* bfloat16_kernels() {
  __builtin_cpu_init();
  const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl");
  return has ? &avx512bf16::kKernels : nullptr;
}

const Kernels<float>* float_kernels(const char* isa) {
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && std::strcmp(isa, "avx2") == 0) return &avx2::kKernels;
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has_avx512 && std::strcmp(isa, "avx512") == 0 ? &avx512::kKernels : nullptr;
}

#else

const Kernels<std::uint16_t>* bfloat16_kernels() { return nullptr; }
const Kernels<float>* float_kernels(const char*) { return nullptr; }

#endif

}  // namespace fastdistill::frames
