// SPDX-License-Identifier: MIT
// Arguments of distill_kl_topk, as distill_binding.cpp for the other distillation losses.
#include <string>

#include "bindings/cuda_bridge.h"
#include "bindings/loss_arguments.h"
#include "bindings/loss_binding.h"
#include "bindings/result_tensor.h"
#include "losses/cpu_dispatch.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

constexpr const char* kFunction = "distill_kl_topk";
constexpr ArgumentName kValues{kFunction, "teacher_values"};
constexpr ArgumentName kIndices{kFunction, "teacher_indices"};

dlpack::Tensor read_values(DistillCall& call, py::handle values) {
  const dlpack::Tensor view = view_of(values, kValues);
  const DType dtype = float_dtype(view, kValues);
  const DistillArgs& args = call.args;
  if (view.dimensions != 2 || view.shape[0] != args.batch || view.shape[1] < 1 ||
      view.shape[1] > args.actions) {
    const std::string constraint =
        "be [batch, k], k from 1 to the number of actions, for "
        "student_logits " +
        shape_text(call.student);
    raise_value(kFunction, "teacher_values", constraint.c_str(), shape_text(view));
  }
  check_same_device(view, call.student, "student_logits", kValues);
  const dlpack::Tensor rows = with_adjacent_columns(view, values, call.teacher_owner, kValues);
  refuse_negated_view(values, kValues);
  call.args.teacher = {rows.data, dtype, row_stride(rows)};
  return view;
}

void read_indices(TopkArgs& args, const dlpack::Tensor& values, py::handle indices,
                  py::object& owner) {
  const dlpack::Tensor view = view_of(indices, kIndices);
  if (view.dtype.code != dlpack::kInt || view.dtype.bits != 64) {
    raise_type(kFunction, "teacher_indices", "be int64", repr_of(indices.attr("dtype")));
  }
  check_shape(view, values, "teacher_values", kIndices);
  check_same_device(view, values, "student_logits", kIndices);
  refuse_negated_view(indices, kIndices);
  const dlpack::Tensor rows = with_adjacent_columns(view, indices, owner, kIndices);
  args.indices = static_cast<const std::int64_t*>(rows.data);
  args.index_row_stride = row_stride(rows);
  args.k = view.shape[1];
}

// Without the actions of the tail their values at another temperature cannot be known.
double read_temperature(py::handle value, bool tail) {
  const double result = temperature(value, kFunction, "temperature");
  if (tail && result != 1.0) {
    raise_value(kFunction, "temperature",
                "be 1 with tail=True (the tail at another one is unknown: pass log-probabilities "
                "of that temperature, or tail=False)",
                repr_of(value));
  }
  return result;
}

TopkFinding run_on_cpu(const TopkArgs& args) {
  if (args.base.batch * args.base.actions < kReleaseGilElements) return topk_cpu(args);
  const py::gil_scoped_release release;
  return topk_cpu(args);
}

void launch(const TopkArgs& args, const dlpack::Tensor& student) {
  if (student.device.type == dlpack::kCuda) {
    topk_on_cuda(args, student.device.index);
    return;
  }
  const TopkFinding found = run_on_cpu(args);
  const std::string row = " in row " + std::to_string(found.row);
  switch (found.fault) {
    case TopkFault::kNone:
      return;
    case TopkFault::kOutOfRange: {
      const std::string constraint = "be in [0, " + std::to_string(args.base.actions) + ")";
      raise(PyExc_IndexError, kFunction, "teacher_indices", constraint.c_str(),
            std::to_string(found.index) + row);
    }
    case TopkFault::kRepeated:
      raise_value(kFunction, "teacher_indices", "differ within a row",
                  std::to_string(found.index) + " twice" + row);
    case TopkFault::kMass:
      raise_value(kFunction, "teacher_values",
                  "be log-probabilities over all actions with tail=True (log_softmax, then topk)",
                  "probabilities that sum to more than 1" + row);
  }
}

// (loss, grad or None)
py::tuple distill_kl_topk(py::handle student, py::handle values, py::handle indices,
                          py::handle action_mask, py::handle weight, py::handle teacher_temperature,
                          py::handle student_temperature, bool tail, py::handle reduction_name,
                          bool with_grad) {
  DistillCall call;
  py::object index_owner;
  TopkArgs args;
  read_student(call, student, kFunction);
  const dlpack::Tensor given = read_values(call, values);
  read_indices(args, given, indices, index_owner);
  args.tail = tail;
  call.args.temperature = read_temperature(teacher_temperature, tail);
  call.args.student_temperature =
      temperature(student_temperature, kFunction, "student_temperature");
  const Reduction reduction = reduction_of(reduction_name, kFunction, true);
  call.args.scale = scale_of(reduction, LossKind::kKl, call.args.batch, call.args.actions);
  read_mask(call, action_mask, kFunction);
  call.args.weight = row_weights(weight, call.student, "student_logits", uses_float64(call.args),
                                 call.weight_owner, kFunction);
  py::object grad = with_grad ? place_gradient(call, student) : py::none();
  py::object loss = place_loss(call, reduction, student);
  args.base = call.args;
  launch(args, call.student);
  return py::make_tuple(std::move(loss), std::move(grad));
}

}  // namespace

void register_topk(py::module_& m) {
  m.def("distill_kl_topk", &distill_kl_topk,
        "(loss, grad or None) of distill_kl_topk; see fastdistill.losses.");
}

}  // namespace fastdistill
