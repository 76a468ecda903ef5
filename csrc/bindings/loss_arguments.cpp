// SPDX-License-Identifier: MIT
#include "bindings/loss_arguments.h"

#include <cstring>
#include <string>

#include "bindings/result_tensor.h"

namespace py = pybind11;

namespace fastdistill {
Reduction reduction_of(py::handle value, const char* function, bool with_batchmean) {
  const char* text = PyUnicode_Check(value.ptr()) ? PyUnicode_AsUTF8(value.ptr()) : nullptr;
  if (text != nullptr) {
    if (with_batchmean && std::strcmp(text, "batchmean") == 0) return Reduction::kBatchMean;
    if (std::strcmp(text, "mean") == 0) return Reduction::kMean;
    if (std::strcmp(text, "sum") == 0) return Reduction::kSum;
    if (std::strcmp(text, "none") == 0) return Reduction::kNone;
  }
  PyErr_Clear();
  raise_value(
      function, "reduction",
      with_batchmean ? "be 'none', 'sum', 'mean' or 'batchmean'" : "be 'none', 'sum' or 'mean'",
      repr_of(value));
}

double number(py::handle value, const char* function, const char* argument) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    raise_type(function, argument, "be a number", repr_of(value));
  }
  return number;
}

void check_shape(const dlpack::Tensor& tensor, const dlpack::Tensor& reference,
                 const char* reference_name, ArgumentName name) {
  if (tensor.dimensions == 2 && tensor.shape[0] == reference.shape[0] &&
      tensor.shape[1] == reference.shape[1]) {
    return;
  }
  const std::string constraint =
      std::string("have the shape of ") + reference_name + " " + shape_text(reference);
  raise_value(name.function, name.argument, constraint.c_str(), shape_text(tensor));
}

void check_matrix(const dlpack::Tensor& tensor, ArgumentName name) {
  if (tensor.dimensions != 2) {
    raise_value(name.function, name.argument, "be [batch, actions]", shape_text(tensor));
  }
}

bool has_adjacent_columns(const dlpack::Tensor& tensor) {
  return tensor.strides == nullptr || tensor.shape[1] < 2 || tensor.strides[1] == 1;
}

std::int64_t row_stride(const dlpack::Tensor& tensor) {
  return tensor.strides == nullptr ? tensor.shape[1] : tensor.strides[0];
}

void refuse_negated_view(py::handle tensor, ArgumentName name) {
  const py::object answer =
      py::reinterpret_steal<py::object>(PyObject_CallOneArg(torch_api().is_neg, tensor.ptr()));
  if (!answer) throw py::error_already_set();
  if (answer.ptr() == Py_True) {
    raise_value(name.function, name.argument, "be no negated view (call resolve_neg)",
                "is_neg() true");
  }
}

dlpack::Tensor with_adjacent_columns(const dlpack::Tensor& view, py::handle object,
                                     py::object& owner, ArgumentName name) {
  if (has_adjacent_columns(view)) return view;
  owner = object.attr("contiguous")();
  return view_of(owner, name);
}

void check_rows(const dlpack::Tensor& tensor, const dlpack::Tensor& reference, ArgumentName name) {
  if (tensor.dimensions == 1 && tensor.shape[0] == reference.shape[0]) return;
  const std::string constraint = "be [" + std::to_string(reference.shape[0]) + "], one per row";
  raise_value(name.function, name.argument, constraint.c_str(), shape_text(tensor));
}

const void* row_values(py::handle values, const dlpack::Tensor& view,
                       const dlpack::Tensor& reference, const char* reference_name, bool float64,
                       py::object& owner, ArgumentName name) {
  float_dtype(view, name);
  check_rows(view, reference, name);
  check_same_device(view, reference, reference_name, name);
  refuse_negated_view(values, name);
  const bool adjacent = view.strides == nullptr || view.shape[0] < 2 || view.strides[0] == 1;
  if (adjacent && view.dtype.bits == (float64 ? 64 : 32)) return view.data;
  const Torch& torch = torch_api();
  owner =
      values.attr("to")(py::handle(float64 ? torch.float64 : torch.float32)).attr("contiguous")();
  return view_of(owner, name).data;
}

const void* row_weights(py::handle weight, const dlpack::Tensor& reference,
                        const char* reference_name, bool float64, py::object& owner,
                        const char* function) {
  const ArgumentName name{function, "weight"};
  if (weight.is_none()) return nullptr;
  const dlpack::Tensor view = view_of(weight, name);
  if (view.dtype.code != dlpack::kBool) {
    return row_values(weight, view, reference, reference_name, float64, owner, name);
  }
  const Torch& torch = torch_api();
  owner = weight.attr("to")(py::handle(float64 ? torch.float64 : torch.float32));
  return row_values(owner, view_of(owner, name), reference, reference_name, float64, owner, name);
}

namespace {

constexpr double kMinTemperature = 1e-8;
constexpr double kMaxTemperature = 1e8;

}  // namespace

double temperature(py::handle value, const char* function, const char* argument) {
  const double result = number(value, function, argument);
  // Written so that NaN fails as well.
  if (!(result >= kMinTemperature && result <= kMaxTemperature)) {
    raise_value(function, argument, "be between 1e-8 and 1e8", repr_of(value));
  }
  return result;
}

void read_student(DistillCall& call, py::handle student, const char* function) {
  const ArgumentName name{function, "student_logits"};
  call.student = view_of(student, name);
  check_matrix(call.student, name);
  const DType dtype = float_dtype(call.student, name);
  refuse_negated_view(student, name);
  const dlpack::Tensor rows =
      with_adjacent_columns(call.student, student, call.student_owner, name);
  call.args.student = {rows.data, dtype, row_stride(rows)};
  call.args.batch = call.student.shape[0];
  call.args.actions = call.student.shape[1];
}

void read_mask(DistillCall& call, py::handle mask, const char* function) {
  if (mask.is_none()) return;
  const ArgumentName name{function, "action_mask"};
  dlpack::Tensor view = view_of(mask, name);
  if (view.dtype.code != dlpack::kBool || view.dtype.bits != 8) {
    raise_type(function, "action_mask", "be a bool tensor, True where an action is allowed",
               repr_of(mask.attr("dtype")));
  }
  const bool shared = view.dimensions == 1 && view.shape[0] == call.student.shape[1];
  if (!shared) {
    if (view.dimensions != 2 || view.shape[0] != call.student.shape[0] ||
        view.shape[1] != call.student.shape[1]) {
      const std::string constraint =
          "be [actions] or [batch, actions] for student_logits " + shape_text(call.student);
      raise_value(function, "action_mask", constraint.c_str(), shape_text(view));
    }
  }
  check_same_device(view, call.student, "student_logits", name);
  const int last = view.dimensions - 1;
  if (view.strides != nullptr && view.shape[last] > 1 && view.strides[last] != 1) {
    call.mask_owner = mask.attr("contiguous")();
    view = view_of(call.mask_owner, name);
  }
  call.args.action_mask = static_cast<const std::uint8_t*>(view.data);
  call.args.mask_row_stride = shared ? 0 : row_stride(view);
}

double scale_of(Reduction reduction, LossKind kind, std::int64_t batch, std::int64_t actions) {
  if (reduction == Reduction::kNone || reduction == Reduction::kSum) return 1.0;
  // nll has one term per row where the others have one per action.
  const bool per_row = reduction == Reduction::kBatchMean || kind == LossKind::kNll;
  const double terms = static_cast<double>(batch) * (per_row ? 1.0 : static_cast<double>(actions));
  return terms > 0 ? 1.0 / terms : 1.0;  // an empty batch has loss 0
}

py::object place_gradient(DistillCall& call, py::handle student) {
  DistillArgs& args = call.args;
  ResultTensor grad =
      result_tensor({args.batch, args.actions}, call.student.dtype, call.student, student);
  args.grad = grad.data;
  args.grad_row_stride = args.actions;
  return std::move(grad.tensor);
}

py::object place_loss(DistillCall& call, Reduction reduction, py::handle student) {
  DistillArgs& args = call.args;
  const bool per_row = reduction == Reduction::kNone;
  const dlpack::Type dtype = arithmetic_type(uses_float64(args));
  ResultTensor loss = per_row ? result_tensor({args.batch}, dtype, call.student, student)
                              : result_tensor({}, dtype, call.student, student);
  (per_row ? args.row_loss : args.loss) = loss.data;
  return std::move(loss.tensor);
}

}  // namespace fastdistill
