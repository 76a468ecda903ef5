// SPDX-License-Identifier: MIT
#include "bindings/loss_arguments.h"

#include <cstring>
#include <string>

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
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  const py::object answer =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), is_neg));
  if (!answer) throw py::error_already_set();
  if (answer.is(py::bool_(true))) {
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

const void* row_values(py::handle values, const dlpack::Tensor& reference,
                       const char* reference_name, bool float64, py::object& owner,
                       ArgumentName name) {
  if (values.is_none()) return nullptr;
  const dlpack::Tensor view = view_of(values, name);
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

}  // namespace fastdistill
