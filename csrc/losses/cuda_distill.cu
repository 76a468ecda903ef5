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

// Whether all rows can be moved by whole accesses as they are stored.
bool is_dense(const DistillArgs& args) {
  const DType dtype = args.student.dtype;
  const std::int64_t vector = kAccessBytes / element_bytes(dtype);
  const auto aligned = [&](const void* data, std::int64_t row_stride) {
    // Short rows go in tiles, which are aligned if the rows are adjacent.
    const bool rows = args.actions <= kMaxSmallActions
                          ? row_stride == args.actions
                          : args.actions % vector == 0 && row_stride % vector == 0;
    return rows && reinterpret_cast<std::uintptr_t>(data) % kAccessBytes == 0;
  };
  return args.teacher.dtype == dtype && args.action_mask == nullptr && args.actions < (1 << 30) &&
         aligned(args.student.data, args.student.row_stride) &&
         aligned(args.teacher.data, args.teacher.row_stride) &&
         (args.grad == nullptr || aligned(args.grad, args.grad_row_stride));
}

template <LossKind kind, class Access>
void launch_tiles(const DistillArgs& args, const CudaLaunch& launch) {
  using Real = typename Access::Real;
  const std::int64_t stride = tile_stride(args.actions);
  const std::int64_t row_bytes =
      2 * stride * static_cast<std::int64_t>(sizeof(typename Access::Stored));
  // A small batch is spread over the device.
  int threads = kSmallThreads;
  while (threads > kWarp && (threads * row_bytes > platform::kDynamicBytesWithoutAsking ||
                             args.batch < threads * platform::multiprocessors(launch.device))) {
    threads /= 2;
  }
  const TileShape shape{static_cast<int>(args.actions), static_cast<int>(stride),
                        tile_magic(args.actions)};
  const platform::Grid grid{
      block_count(divide_up(args.batch, threads), kBlocksPerMultiprocessor, launch.device), threads,
      threads * row_bytes};
  platform::launch(small_rows<kind, Access>, grid, launch.stream, args, Settings<Real>(args),
                   workspace_at(launch.workspace), shape);
}

template <LossKind kind, class Access>
void launch_warps(const DistillArgs& args, const CudaLaunch& launch) {
  using Real = typename Access::Real;
  constexpr int kUsualThreads = 128;
  const std::int64_t kept = divide_up(args.actions, kWarp * Access::kVector);
  const std::int64_t row_bytes = kept * kWarp * kVectorBytes<Access>;
  int threads = kUsualThreads;
  while (threads > kWarp && threads / kWarp * row_bytes > platform::kDynamicBytesWithoutAsking) {
    threads /= 2;
  }
  // One block for a batch that fits in one: no block waits for another's part of the loss.
  if (args.batch * kWarp <= kMaxWideThreads<Access> &&
      args.batch * row_bytes <= platform::kDynamicBytesWithoutAsking) {
    threads = kMaxWideThreads<Access>;
    while (threads / 2 >= args.batch * kWarp) threads /= 2;
  }
  const std::int64_t warps = threads / kWarp;
  const platform::Grid grid{
      block_count(divide_up(args.batch, warps), kBlocksPerMultiprocessor, launch.device), threads,
      warps * row_bytes};
  platform::launch(warp_rows<kind, Access>, grid, launch.stream, args, Settings<Real>(args),
                   workspace_at(launch.workspace), static_cast<int>(kept));
}

template <LossKind kind, class Access>
void launch_blocks(const DistillArgs& args, const CudaLaunch& launch) {
  using Real = typename Access::Real;
  constexpr int kUsualVectors = 8;  // per thread and matrix
  constexpr int kFewestThreads = 256;
  constexpr std::int64_t kResidentThreads = 2048;
  const std::int64_t vectors = divide_up(args.actions, Access::kVector);
  int threads = kMaxWideThreads<Access>;
  while (threads > kFewestThreads && threads * kUsualVectors > vectors) threads /= 2;
  const std::int64_t step_bytes = threads * kVectorBytes<Access>;
  const std::int64_t room =
      platform::shared_bytes_per_block(launch.device) - platform::kStaticSharedBytes;
  const std::int64_t kept = smaller(divide_up(vectors, threads), room / step_bytes);
  const std::int64_t block_bytes =
      kept * step_bytes + platform::kStaticSharedBytes + platform::kReservedSharedBytes;
  const std::int64_t resident =
      smaller(kResidentThreads / threads,
              platform::shared_bytes_per_multiprocessor(launch.device) / block_bytes);
  const platform::Grid grid{block_count(args.batch, resident, launch.device), threads,
                            kept * step_bytes};
  platform::launch(block_rows<kind, Access>, grid, launch.stream, args, Settings<Real>(args),
                   workspace_at(launch.workspace), static_cast<int>(kept));
}

template <LossKind kind, class Access>
void launch_rows(const DistillArgs& args, const CudaLaunch& launch) {
  if (args.actions <= kMaxSmallActions) return launch_tiles<kind, Access>(args, launch);
  // float64 serves checks: it has no kernel of its own for rows of middle length.
  if constexpr (sizeof(typename Access::Real) == 4) {
    if (args.actions <= kMaxWarpActions) return launch_warps<kind, Access>(args, launch);
  }
  launch_blocks<kind, Access>(args, launch);
}

template <LossKind kind>
void launch_access(const DistillArgs& args, const CudaLaunch& launch) {
  // A row's passes take a thread of its own longer than a warp; while warps are to be had, short
  // rows of small batches get one.
  const bool is_few = args.batch <= platform::multiprocessors(launch.device) * kWarp;
  if (uses_float64(args)) return launch_rows<kind, General<double>>(args, launch);
  if (args.actions <= kMaxSmallActions && is_few) {
    return launch_warps<kind, General<float>>(args, launch);
  }
  if (!is_dense(args)) return launch_rows<kind, General<float>>(args, launch);
  switch (args.student.dtype) {
    case DType::kFloat64:
      return;  // above
    case DType::kFloat32:
      return launch_rows<kind, Dense<DType::kFloat32>>(args, launch);
    case DType::kBFloat16:
      return launch_rows<kind, Dense<DType::kBFloat16>>(args, launch);
    case DType::kFloat16:
      return launch_rows<kind, Dense<DType::kFloat16>>(args, launch);
  }
}

void launch_kind(const DistillArgs& args, const CudaLaunch& launch) {
  switch (args.kind) {
    case LossKind::kKl:
      return launch_access<LossKind::kKl>(args, launch);
    case LossKind::kReverseKl:
      return launch_access<LossKind::kReverseKl>(args, launch);
    case LossKind::kJsd:
      return launch_access<LossKind::kJsd>(args, launch);
    case LossKind::kNll:
      return launch_access<LossKind::kNll>(args, launch);
    case LossKind::kMse:
      return launch_access<LossKind::kMse>(args, launch);
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
  } else {
    cuda::launch_kind(args, launch);
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
