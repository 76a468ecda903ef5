// SPDX-License-Identifier: MIT
// Chooses kernel and grid for one call and launches it. Also compiled as C++ by the tests, with
// tests/cpp/simt in the place of the CUDA runtime.
#include "losses/cuda_launch.h"
#include "losses/cuda_small_rows.cuh"
#include "losses/cuda_td_rows.cuh"
#include "losses/cuda_topk_rows.cuh"
#include "losses/cuda_wide_rows.cuh"

namespace fastdistill {
namespace cuda {
namespace {

constexpr std::int64_t kSharedBytesWithoutAsking = 48 * 1024;
constexpr std::int64_t kBlocksPerMultiprocessor = 16;

Workspace workspace_at(void* memory) {
  return {static_cast<unsigned*>(memory),
          reinterpret_cast<double*>(static_cast<unsigned char*>(memory) + kCudaTicketBytes)};
}

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Enough blocks to fill the device; each takes as many pieces of the work as there are.
std::int64_t block_count(std::int64_t pieces, std::int64_t per_multiprocessor, int device) {
  const std::int64_t resident = platform::multiprocessors(device) * per_multiprocessor;
  return smaller(smaller(pieces, resident), kMaxCudaBlocks);
}

// A quad of this dtype may be read at once at any multiple of four elements from here.
bool is_aligned(const void* data, DType dtype) {
  const std::uintptr_t bytes = element_bytes(dtype) == 2 ? 8 : 16;
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

bool all_aligned(const DistillArgs& args) {
  return is_aligned(args.student.data, args.student.dtype) &&
         is_aligned(args.teacher.data, args.teacher.dtype) &&
         is_aligned(args.grad, args.student.dtype);
}

bool has_adjacent_rows(const DistillArgs& args) {
  return args.student.row_stride == args.actions && args.teacher.row_stride == args.actions &&
         (args.grad == nullptr || args.grad_row_stride == args.actions);
}

bool has_aligned_rows(const DistillArgs& args) {
  return args.actions % kQuad == 0 && args.student.row_stride % kQuad == 0 &&
         args.teacher.row_stride % kQuad == 0 &&
         (args.grad == nullptr || args.grad_row_stride % kQuad == 0);
}

template <LossKind kind, class Real>
void launch_small(const DistillArgs& args, const CudaLaunch& launch) {
  const std::int64_t stride = tile_stride(args.actions);
  const std::int64_t row_bytes = 2 * stride * static_cast<std::int64_t>(sizeof(Real));
  const std::int64_t multiprocessors = platform::multiprocessors(launch.device);
  // Whole quads per tile keep the next tile aligned; a small batch is spread over the device.
  int threads = kSmallThreads;
  while (threads > kWarp && (threads * row_bytes > kSharedBytesWithoutAsking ||
                             args.batch < threads * multiprocessors)) {
    threads /= 2;
  }
  const TileShape shape{static_cast<int>(args.actions), static_cast<int>(stride),
                        tile_magic(args.actions), all_aligned(args) && has_adjacent_rows(args)};
  const platform::Grid grid{
      block_count(divide_up(args.batch, threads), kBlocksPerMultiprocessor, launch.device), threads,
      threads * row_bytes};
  platform::launch(small_rows<kind, Real>, grid, launch.stream, args, Settings<Real>(args),
                   workspace_at(launch.workspace), shape);
}

template <LossKind kind, class Real>
void launch_warps(const DistillArgs& args, const CudaLaunch& launch) {
  const std::int64_t quads = divide_up(args.actions, kWarp * kQuad);
  const std::int64_t row_bytes = 2 * quads * kWarp * static_cast<std::int64_t>(sizeof(Quad<Real>));
  int threads = kMaxWarpRowThreads;
  while (threads > kWarp && threads / kWarp * row_bytes > kSharedBytesWithoutAsking) threads /= 2;
  const WideShape shape{static_cast<int>(quads), all_aligned(args) && has_aligned_rows(args)};
  const std::int64_t warps = threads / kWarp;
  const platform::Grid grid{
      block_count(divide_up(args.batch, warps), kBlocksPerMultiprocessor, launch.device), threads,
      warps * row_bytes};
  platform::launch(warp_rows<kind, Real>, grid, launch.stream, args, Settings<Real>(args),
                   workspace_at(launch.workspace), shape);
}

template <LossKind kind, class Real>
void launch_blocks(const DistillArgs& args, const CudaLaunch& launch) {
  constexpr std::int64_t kResidentBlocks = 2;
  constexpr std::int64_t kOtherSharedBytes = 4 * 1024;  // static, and what CUDA takes per block
  const std::int64_t bytes_per_quad =
      2 * kBlockRowThreads * static_cast<std::int64_t>(sizeof(Quad<Real>));
  const std::int64_t quads = divide_up(args.actions, kBlockRowThreads * kQuad);
  const std::int64_t room =
      smaller(platform::shared_bytes_per_block(launch.device),
              platform::shared_bytes_per_multiprocessor(launch.device) / kResidentBlocks) -
      kOtherSharedBytes;
  const std::int64_t kept_quads = smaller(quads, room / bytes_per_quad);
  const WideShape shape{static_cast<int>(kept_quads), all_aligned(args) && has_aligned_rows(args)};
  const platform::Grid grid{block_count(args.batch, kResidentBlocks, launch.device),
                            kBlockRowThreads, kept_quads * bytes_per_quad};
  platform::launch(block_rows<kind, Real>, grid, launch.stream, args, Settings<Real>(args),
                   workspace_at(launch.workspace), shape);
}

template <LossKind kind, class Real>
void launch_rows(const DistillArgs& args, const CudaLaunch& launch) {
  if (args.actions <= kMaxSmallActions) {
    launch_small<kind, Real>(args, launch);
  } else if (args.actions <= kMaxWarpActions) {
    launch_warps<kind, Real>(args, launch);
  } else {
    launch_blocks<kind, Real>(args, launch);
  }
}

template <class Real>
void launch_kind(const DistillArgs& args, const CudaLaunch& launch) {
  switch (args.kind) {
    case LossKind::kKl:
      return launch_rows<LossKind::kKl, Real>(args, launch);
    case LossKind::kReverseKl:
      return launch_rows<LossKind::kReverseKl, Real>(args, launch);
    case LossKind::kJsd:
      return launch_rows<LossKind::kJsd, Real>(args, launch);
    case LossKind::kNll:
      return launch_rows<LossKind::kNll, Real>(args, launch);
    case LossKind::kMse:
      return launch_rows<LossKind::kMse, Real>(args, launch);
  }
}

template <class Real>
void launch_topk(const TopkArgs& args, const CudaLaunch& launch) {
  constexpr std::int64_t kMaxMarkBytes = 32 * 1024;
  constexpr std::int64_t kResidentBlocks = 4;
  const std::int64_t room = smaller(kMaxMarkBytes, platform::shared_bytes_per_block(launch.device));
  const std::int64_t words = divide_up(args.base.actions, kWordBits);
  const std::int64_t bytes = smaller(words * 4, room);
  const platform::Grid grid{block_count(args.base.batch, kResidentBlocks, launch.device),
                            kTopkThreads, bytes};
  platform::launch(topk_rows<Real>, grid, launch.stream, args, Settings<Real>(args.base),
                   workspace_at(launch.workspace), bytes * 8);
}

template <class Real>
void launch_td(const TdArgs& args, const CudaLaunch& launch) {
  const platform::Grid grid{
      block_count(divide_up(args.batch, kTdThreads), kBlocksPerMultiprocessor, launch.device),
      kTdThreads, 0};
  platform::launch(td_rows<Real>, grid, launch.stream, args, workspace_at(launch.workspace));
}

}  // namespace
}  // namespace cuda

void distill_cuda(const DistillArgs& args, const CudaLaunch& launch) {
  const platform::DeviceScope scope(launch.device);
  const bool float64 = uses_float64(args);
  if (args.batch == 0 || args.actions == 0) {
    const std::size_t bytes = float64 ? 8 : 4;
    if (args.loss != nullptr) platform::zero_async(args.loss, bytes, launch.stream);
    if (args.row_loss != nullptr && args.batch > 0) {
      platform::zero_async(args.row_loss, bytes * static_cast<std::size_t>(args.batch),
                           launch.stream);
    }
  } else if (float64) {
    cuda::launch_kind<double>(args, launch);
  } else {
    cuda::launch_kind<float>(args, launch);
  }
}

void topk_cuda(const TopkArgs& args, const CudaLaunch& launch) {
  const platform::DeviceScope scope(launch.device);
  const bool float64 = uses_float64(args.base);
  if (args.base.batch == 0) {
    if (args.base.loss != nullptr) {
      platform::zero_async(args.base.loss, float64 ? 8 : 4, launch.stream);
    }
  } else if (float64) {
    cuda::launch_topk<double>(args, launch);
  } else {
    cuda::launch_topk<float>(args, launch);
  }
}

void td_cuda(const TdArgs& args, const CudaLaunch& launch) {
  const platform::DeviceScope scope(launch.device);
  const bool float64 = args.q.dtype == DType::kFloat64;
  if (args.batch == 0) {
    if (args.loss != nullptr) platform::zero_async(args.loss, float64 ? 8 : 4, launch.stream);
  } else if (float64) {
    cuda::launch_td<double>(args, launch);
  } else {
    cuda::launch_td<float>(args, launch);
  }
}

bool is_capturing_cuda(int device, void* stream) {
  const platform::DeviceScope scope(device);
  return platform::is_capturing(stream);
}

void* make_workspace_cuda(int device, void* stream) {
  const platform::DeviceScope scope(device);
  void* memory = platform::allocate(kCudaWorkspaceBytes);
  platform::zero_async(memory, kCudaTicketBytes, stream);
  return memory;
}

int current_device_cuda() { return platform::current_device(); }

}  // namespace fastdistill
