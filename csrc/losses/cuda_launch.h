// SPDX-License-Identifier: MIT
// The CUDA losses as plain C++ functions: what fastdistill._cuda and the C++ tests call.
//
// One kernel launch computes loss, gradient and reduction. Nothing synchronises and nothing is
// allocated, so a call may be captured in a CUDA graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include "losses/loss_args.h"

namespace fastdistill {

// The most blocks that one launch uses: each leaves its part of the loss in the workspace.
inline constexpr std::int64_t kMaxCudaBlocks = 4096;

// A workspace holds the blocks' parts and the ticket that finds the last block. Its first 16 bytes
// must be 0 before the first call and are 0 again after each call. Calls that may overlap in time
// need a workspace each: keep one per device and stream, and give every captured graph its own,
// zeroed by a node of that graph.
inline constexpr std::size_t kCudaTicketBytes = 16;
inline constexpr std::size_t kCudaWorkspaceBytes =
    kCudaTicketBytes + static_cast<std::size_t>(kMaxCudaBlocks) * sizeof(double);

struct CudaLaunch {
  int device = 0;
  void* stream = nullptr;     // cudaStream_t; null = the legacy default stream
  void* workspace = nullptr;  // kCudaWorkspaceBytes on the device, 16-byte aligned
};

// All pointers are the device's. Throws std::runtime_error with CUDA's reason and what to do.
void distill_cuda(const DistillArgs& args, const CudaLaunch& launch);

// What topk_cpu reports of a row gives it a NaN loss and a zero gradient.
void topk_cuda(const TopkArgs& args, const CudaLaunch& launch);

// An action outside [0, actions) gives its row a NaN loss and td_abs, and a zero gradient.
void td_cuda(const TdArgs& args, const CudaLaunch& launch);

// Whether the stream is being captured into a CUDA graph.
bool is_capturing_cuda(int device, void* stream);

// How fastdistill._core, which is built without CUDA, reaches these functions: fastdistill._cuda
// offers this table as the capsule `kernels`.
inline constexpr const char* kCudaKernelsCapsule = "fastdistill.cuda_kernels";

// Zeroed memory of cudaMalloc, of use on this stream from now on. It is never freed, and it belongs
// to no pool of torch: what a captured graph's pool holds beyond the graph's own results is an
// error to torch.compile. A capture on another thread does not mind.
void* make_workspace_cuda(int device, void* stream);

// The device that is current to this thread; asking makes no context.
int current_device_cuda();

struct CudaKernels {
  std::size_t distill_args_bytes;  // both modules must come from one build
  std::size_t topk_args_bytes;
  std::size_t td_args_bytes;
  void (*distill)(const DistillArgs& args, const CudaLaunch& launch);
  void (*topk)(const TopkArgs& args, const CudaLaunch& launch);
  void (*td)(const TdArgs& args, const CudaLaunch& launch);
  bool (*is_capturing)(int device, void* stream);
  void* (*make_workspace)(int device, void* stream);
  int (*current_device)();
};

}  // namespace fastdistill
