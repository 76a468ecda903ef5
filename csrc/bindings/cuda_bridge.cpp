// SPDX-License-Identifier: MIT
#include "bindings/cuda_bridge.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "bindings/tensor_view.h"
#include "losses/cuda_launch.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

const CudaKernels& cuda_kernels() {
  static const CudaKernels* kernels = nullptr;  // guarded by the GIL
  if (kernels == nullptr) {
    const py::object module = py::module_::import("fastdistill._native").attr("cuda_module")();
    const auto* table = static_cast<const CudaKernels*>(
        PyCapsule_GetPointer(module.attr("kernels").ptr(), kCudaKernelsCapsule));
    if (table == nullptr) throw py::error_already_set();
    if (table->distill_args_bytes != sizeof(DistillArgs) ||
        table->topk_args_bytes != sizeof(TopkArgs) || table->td_args_bytes != sizeof(TdArgs)) {
      throw std::runtime_error(
          "fastdistill: _cuda and _core come from different builds; reinstall");
    }
    kernels = table;
  }
  return *kernels;
}

// Makes a device current by torch's own means, if another one is: going back to a device that has
// no context yet would make one there, hundreds of megabytes, unless torch does it.
class CurrentDevice {
 public:
  explicit CurrentDevice(std::int32_t device) {
    if (cuda_kernels().current_device() == device) return;
    cuda_ = py::module_::import("torch.cuda");
    previous_ = cuda_.attr("_exchange_device")(device);
  }
  ~CurrentDevice() {
    if (!cuda_) return;
    try {
      cuda_.attr("_maybe_exchange_device")(previous_);
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("fastdistill: going back to the current device");
    }
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  py::object cuda_;
  py::object previous_;
};

// Where a call runs. A captured graph gets a workspace of its own, which it zeroes at each replay;
// `owner` keeps that alive until the call returns, the graph's memory pool after that.
struct Place {
  CurrentDevice current;
  CudaLaunch launch;
  py::object owner;

  explicit Place(std::int32_t device) : current(device) {
    launch.device = device;
    if (torch_api().api->current_stream(dlpack::kCuda, device, &launch.stream) != 0) {
      throw py::error_already_set();
    }
    static std::map<std::pair<std::int32_t, void*>, void*> workspaces;  // guarded by the GIL
    const bool capturing = cuda_kernels().is_capturing(device, launch.stream);
    const auto key = std::make_pair(device, launch.stream);
    const auto known = workspaces.find(key);
    if (!capturing && known != workspaces.end()) {
      launch.workspace = known->second;
      return;
    }
    if (capturing) {
      const py::object make = py::module_::import("fastdistill._native").attr("graph_workspace");
      owner = make(device, kCudaWorkspaceBytes, kCudaTicketBytes);
      launch.workspace = view_of(owner, {"fastdistill", "workspace"}).data;
    } else {
      launch.workspace = cuda_kernels().make_workspace(device, launch.stream);
      workspaces.emplace(key, launch.workspace);
    }
  }
};

}  // namespace

void distill_on_cuda(const DistillArgs& args, std::int32_t device_index) {
  const CudaKernels& kernels = cuda_kernels();
  const Place place(device_index);
  kernels.distill(args, place.launch);
}

void topk_on_cuda(const TopkArgs& args, std::int32_t device_index) {
  const CudaKernels& kernels = cuda_kernels();
  const Place place(device_index);
  kernels.topk(args, place.launch);
}

void td_on_cuda(const TdArgs& args, std::int32_t device_index) {
  const CudaKernels& kernels = cuda_kernels();
  const Place place(device_index);
  kernels.td(args, place.launch);
}

}  // namespace fastdistill
