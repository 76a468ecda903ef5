// SPDX-License-Identifier: MIT
// The extension module fastdistill._cuda: the CUDA kernels by address. Its callers have checked
// their tensors; here only what would choose no kernel is refused. Importing it needs no driver.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "losses/cuda_launch.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

template <class Enum>
Enum code(int value, int count, const char* function, const char* argument) {
  if (value < 0 || value >= count) {
    throw py::value_error(std::string(function) + ": " + argument + " must be between 0 and " +
                          std::to_string(count - 1) + ", got " + std::to_string(value));
  }
  return static_cast<Enum>(value);
}

void distill(int kind, std::int64_t batch, std::int64_t actions, std::uintptr_t student,
             int student_dtype, std::int64_t student_row_stride, std::uintptr_t teacher,
             int teacher_dtype, std::int64_t teacher_row_stride, std::uintptr_t action_mask,
             std::int64_t mask_row_stride, std::uintptr_t weight, double temperature,
             double student_temperature, double beta, double scale, std::uintptr_t row_loss,
             std::uintptr_t loss, std::uintptr_t grad, std::int64_t grad_row_stride, int device,
             std::uintptr_t stream, std::uintptr_t workspace) {
  DistillArgs args;
  args.kind = code<LossKind>(kind, 5, "distill", "kind");
  args.batch = batch;
  args.actions = actions;
  args.student = {pointer(student), code<DType>(student_dtype, 4, "distill", "student_dtype"),
                  student_row_stride};
  args.teacher = {pointer(teacher), code<DType>(teacher_dtype, 4, "distill", "teacher_dtype"),
                  teacher_row_stride};
  args.action_mask = static_cast<const std::uint8_t*>(pointer(action_mask));
  args.mask_row_stride = mask_row_stride;
  args.weight = pointer(weight);
  args.temperature = temperature;
  args.student_temperature = student_temperature;
  args.beta = beta;
  args.scale = scale;
  args.row_loss = pointer(row_loss);
  args.loss = pointer(loss);
  args.grad = pointer(grad);
  args.grad_row_stride = grad_row_stride;
  distill_cuda(args, {device, pointer(stream), pointer(workspace)});
}

void td(int kind, std::int64_t batch, std::int64_t actions, std::uintptr_t q, int dtype,
        std::int64_t q_row_stride, std::uintptr_t action, std::uintptr_t target,
        std::uintptr_t weight, double scale, std::uintptr_t row_loss, std::uintptr_t loss,
        std::uintptr_t td_abs, std::uintptr_t grad, int device, std::uintptr_t stream,
        std::uintptr_t workspace) {
  TdArgs args;
  args.kind = code<TdKind>(kind, 2, "td", "kind");
  args.batch = batch;
  args.actions = actions;
  args.q = {pointer(q), code<DType>(dtype, 2, "td", "dtype"), q_row_stride};
  args.action = static_cast<const std::int64_t*>(pointer(action));
  args.target = pointer(target);
  args.weight = pointer(weight);
  args.scale = scale;
  args.row_loss = pointer(row_loss);
  args.loss = pointer(loss);
  args.td_abs = pointer(td_abs);
  args.grad = pointer(grad);
  td_cuda(args, {device, pointer(stream), pointer(workspace)});
}

}  // namespace

}  // namespace fastdistill

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of fastdistill, by address; fastdistill.losses is the way to them.";
  m.attr("workspace_bytes") = fastdistill::kCudaWorkspaceBytes;
  m.def("distill", &fastdistill::distill, py::arg("kind"), py::arg("batch"), py::arg("actions"),
        py::arg("student"), py::arg("student_dtype"), py::arg("student_row_stride"),
        py::arg("teacher"), py::arg("teacher_dtype"), py::arg("teacher_row_stride"),
        py::arg("action_mask"), py::arg("mask_row_stride"), py::arg("weight"),
        py::arg("temperature"), py::arg("student_temperature"), py::arg("beta"), py::arg("scale"),
        py::arg("row_loss"), py::arg("loss"), py::arg("grad"), py::arg("grad_row_stride"),
        py::arg("device"), py::arg("stream"), py::arg("workspace"));
  m.def("td", &fastdistill::td, py::arg("kind"), py::arg("batch"), py::arg("actions"), py::arg("q"),
        py::arg("dtype"), py::arg("q_row_stride"), py::arg("action"), py::arg("target"),
        py::arg("weight"), py::arg("scale"), py::arg("row_loss"), py::arg("loss"),
        py::arg("td_abs"), py::arg("grad"), py::arg("device"), py::arg("stream"),
        py::arg("workspace"));
}
