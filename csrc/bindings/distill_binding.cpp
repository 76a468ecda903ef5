// SPDX-License-Identifier: MIT
// Arguments of the losses: checked once, here, then trusted. One entry per loss family allocates
// the results, so that a call from Python costs little more than its kernel.
#include <string>

#include "bindings/cuda_bridge.h"
#include "bindings/gradient_pool.h"
#include "bindings/loss_arguments.h"
#include "bindings/loss_binding.h"
#include "bindings/result_tensor.h"
#include "losses/cpu_dispatch.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

void read_logits(DistillCall& call, py::handle student, py::handle teacher, const char* function) {
  const ArgumentName name{function, "teacher_logits"};
  read_student(call, student, function);
  dlpack::Tensor view = view_of(teacher, name);
  check_shape(view, call.student, "student_logits", name);
  const DType dtype = float_dtype(view, name);
  check_same_device(view, call.student, "student_logits", name);
  view = with_adjacent_columns(view, teacher, call.teacher_owner, name);
  refuse_negated_view(teacher, name);
  call.args.teacher = {view.data, dtype, row_stride(view)};
}

// The bytes from a matrix's first element to its last; [batch, actions] with adjacent columns.
struct Extent {
  std::uintptr_t begin;
  std::uintptr_t end;

  Extent(const void* data, std::int64_t stride, int element, const DistillArgs& args)
      : begin(reinterpret_cast<std::uintptr_t>(data)),
        end(begin +
            static_cast<std::uintptr_t>(((args.batch - 1) * stride + args.actions) * element)) {}
  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

// What the kernel reads while it writes gradients. Arguments that were copied first may overlap:
// then it is the copy that is read.
void refuse_overlap(const dlpack::Tensor& grad, const DistillArgs& args, const char* function) {
  if (args.batch == 0 || args.actions == 0) return;
  const Extent written(grad.data, row_stride(grad), grad.dtype.bits / 8, args);
  const auto refuse = [&](const char* constraint) {
    raise_value(function, "out_grad", constraint, "an overlap");
  };
  for (const Matrix* logits : {&args.student, &args.teacher}) {
    if (written.overlaps({logits->data, logits->row_stride, element_bytes(logits->dtype), args})) {
      refuse("be other memory than the logits");
    }
  }
  if (args.action_mask != nullptr &&
      written.overlaps({args.action_mask, args.mask_row_stride, 1, args})) {
    refuse("be other memory than action_mask");
  }
  const std::int64_t weight_bytes = args.batch * (uses_float64(args) ? 8 : 4);
  const auto weight = reinterpret_cast<std::uintptr_t>(args.weight);
  if (args.weight != nullptr && weight < written.end &&
      written.begin < weight + static_cast<std::uintptr_t>(weight_bytes)) {
    refuse("be other memory than weight");
  }
}

// The caller's own gradient tensor, to be written over.
py::object use_gradient(DistillCall& call, py::handle out_grad, const char* function) {
  const ArgumentName name{function, "out_grad"};
  const dlpack::Tensor view = view_of(out_grad, name);
  check_shape(view, call.student, "student_logits", name);
  if (float_dtype(view, name) != call.args.student.dtype) {
    raise_type(function, "out_grad", "have the dtype of student_logits",
               repr_of(out_grad.attr("dtype")));
  }
  check_same_device(view, call.student, "student_logits", name);
  refuse_negated_view(out_grad, name);
  const bool overlaps = view.shape[0] > 1 && row_stride(view) < view.shape[1];
  if (!has_adjacent_columns(view) || overlaps) {
    raise_value(function, "out_grad", "have adjacent columns and separate rows",
                "strides " + repr_of(out_grad.attr("stride")()));
  }
  refuse_overlap(view, call.args, function);
  call.args.grad = view.data;
  call.args.grad_row_stride = row_stride(view);
  return py::reinterpret_borrow<py::object>(out_grad);
}

void launch(const DistillCall& call) {
  if (call.student.device.type == dlpack::kCuda) {
    distill_on_cuda(call.args, call.student.device.index);
  } else if (call.args.batch * call.args.actions < kReleaseGilElements) {
    distill_cpu(call.args);
  } else {
    const py::gil_scoped_release release;
    distill_cpu(call.args);
  }
}

// (loss, grad or None). Options that a kind does not use have been refused by the Python side.
py::tuple distill(int kind, py::handle student, py::handle teacher, py::handle action_mask,
                  py::handle weight, py::handle teacher_temperature, py::handle student_temperature,
                  py::handle beta, py::handle reduction_name, bool with_grad, py::handle out_grad,
                  const char* function) {
  DistillCall call;
  DistillArgs& args = call.args;
  read_logits(call, student, teacher, function);
  args.kind = static_cast<LossKind>(kind);
  args.temperature = temperature(teacher_temperature, function, "temperature");
  args.student_temperature = temperature(student_temperature, function, "student_temperature");
  args.beta = number(beta, function, "beta");
  if (!(args.beta >= 0.0 && args.beta <= 1.0)) {
    raise_value(function, "beta", "be between 0 and 1", repr_of(beta));
  }
  if (args.kind == LossKind::kJsd && args.beta == 0.0) args.kind = LossKind::kKl;
  if (args.kind == LossKind::kJsd && args.beta == 1.0) args.kind = LossKind::kReverseKl;
  const Reduction reduction = reduction_of(reduction_name, function, true);
  args.scale = scale_of(reduction, args.kind, args.batch, args.actions);
  read_mask(call, action_mask, function);
  const bool float64 = uses_float64(args);
  args.weight =
      row_weights(weight, call.student, "student_logits", float64, call.weight_owner, function);

  py::object grad = py::none();
  if (with_grad) {
    grad =
        out_grad.is_none() ? place_gradient(call, student) : use_gradient(call, out_grad, function);
  }
  py::object loss = place_loss(call, reduction, student);
  launch(call);
  return py::make_tuple(std::move(loss), std::move(grad));
}

}  // namespace

void register_distill(py::module_& m) {
  m.def("distill", &distill,
        "(loss, grad or None) of one distillation loss; see fastdistill.losses for the meaning.");
  m.def("pooled_bytes", &pooled_bytes, "Memory that is kept for the gradients of later steps.");
  m.def("cpu_isa", &cpu_isa, "The instruction set of the CPU kernels: baseline, avx2 or avx512.");
}

}  // namespace fastdistill
