// SPDX-License-Identifier: MIT
// The extension module fastdistill._cuda: the CUDA kernels as a table of functions, which
// fastdistill._core calls with arguments that it has checked. Importing it needs no driver.
#include <pybind11/pybind11.h>

#include "losses/cuda_launch.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m) {
  static const fastdistill::CudaKernels kernels{
      sizeof(fastdistill::DistillArgs), sizeof(fastdistill::TopkArgs),
      sizeof(fastdistill::TdArgs),      &fastdistill::distill_cuda,
      &fastdistill::topk_cuda,          &fastdistill::td_cuda,
      &fastdistill::is_capturing_cuda,  &fastdistill::make_workspace_cuda,
      &fastdistill::current_device_cuda};
  m.doc() = "The CUDA kernels of fastdistill, for fastdistill._core.";
  m.attr("architectures") = FASTDISTILL_CUDA_ARCHITECTURES;
  m.attr("kernels") = py::capsule(&kernels, fastdistill::kCudaKernelsCapsule);
}
