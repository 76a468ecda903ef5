// SPDX-License-Identifier: MIT
// Everything the CUDA kernels need from their platform. nvcc gets the CUDA runtime; a C++ compiler
// gets tests/cpp/simt/simt.h, which runs the same kernels on the CPU in every test run.
#pragma once

#include "losses/cuda_grid.h"

#if !defined(__CUDACC__)

#include "simt/simt.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#define FASTDISTILL_DEVICE __device__ __forceinline__
#define FASTDISTILL_SHARED(Type, name) __shared__ Type name
#define FASTDISTILL_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace fastdistill::platform {

FASTDISTILL_DEVICE float float_of(std::uint32_t bits) { return __uint_as_float(bits); }
FASTDISTILL_DEVICE float widen_float16(std::uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
FASTDISTILL_DEVICE std::uint16_t narrow_bfloat16(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
FASTDISTILL_DEVICE std::uint16_t narrow_float16(float value) {
  return __half_as_ushort(__float2half_rn(value));
}
// The first in the low half.
FASTDISTILL_DEVICE std::uint32_t narrow_bfloat16_pair(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  std::uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}
FASTDISTILL_DEVICE std::uint32_t narrow_float16_pair(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  std::uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}

// One instruction, 2 ulp. What it flushes to zero is below 2^-126 of the row's largest term.
FASTDISTILL_DEVICE float exp2(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// Copies this many aligned bytes to shared memory without a stop on the way; they are there after
// the thread's wait_copies. They may go where the thread has just read.
template <int bytes>
FASTDISTILL_DEVICE void copy_async(void* to, const void* from) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(bytes)
                 : "memory");
  }
}
FASTDISTILL_DEVICE void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The blocks' parts were written by other multiprocessors: not through this one's first cache.
FASTDISTILL_DEVICE double load_shared_result(const double* value) { return __ldcg(value); }

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::string advice;
  if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) {
    advice = "install or update the NVIDIA driver (nvidia-smi shows it), or use CPU tensors";
  } else if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    advice =
        "rebuild fastdistill on this machine, or list this GPU in FASTDISTILL_CUDA_ARCHITECTURES";
  } else {
    advice = "an earlier kernel may have failed; CUDA_LAUNCH_BLOCKING=1 shows which";
  }
  throw std::runtime_error(std::string("fastdistill._cuda: ") + what +
                           " failed: " + cudaGetErrorString(error) + "; " + advice);
}

// Makes a device current for the calls of its lifetime.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ == device) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

inline std::int64_t attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}
inline std::int64_t multiprocessors(int device) {
  return attribute(cudaDevAttrMultiProcessorCount, device);
}
inline std::int64_t shared_bytes_per_block(int device) {
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}
inline std::int64_t shared_bytes_per_multiprocessor(int device) {
  return attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
}

inline void zero_async(void* memory, std::size_t bytes, void* stream) {
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

inline bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

inline void* allocate(std::size_t bytes) {
  // A capture elsewhere in the process would otherwise forbid the call and be spoilt by it.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  check(error, "cudaMalloc");
  return memory;
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

template <class... Args>
void launch(void (*kernel)(Args...), const Grid& grid, void* stream, const Args&... args) {
  if (grid.shared_bytes > kDynamicBytesWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(grid.shared_bytes)),
          "cudaFuncSetAttribute");
  }
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))...};
  check(cudaLaunchKernel(
            reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(grid.blocks)),
            dim3(static_cast<unsigned>(grid.threads)), pointers,
            static_cast<std::size_t>(grid.shared_bytes), static_cast<cudaStream_t>(stream)),
        "the kernel launch");
}

}  // namespace fastdistill::platform

#endif
