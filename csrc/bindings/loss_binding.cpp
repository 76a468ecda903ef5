// SPDX-License-Identifier: MIT
// Arguments of the losses: checked once, here, then trusted. One entry per loss family allocates the
// results, so that a call from Python costs little more than its kernel.
#include "bindings/loss_binding.h"

#include <cmath>
#include <cstring>
#include <string>

#include "bindings/cuda_bridge.h"
#include "bindings/tensor_view.h"
#include "losses/cpu_dispatch.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

constexpr double kMinTemperature = 1e-8;
constexpr double kMaxTemperature = 1e8;
// Below this many elements the work is shorter than giving the interpreter away and back.
constexpr std::int64_t kReleaseGilElements = 16384;

enum class Reduction : int { kNone, kSum, kMean, kBatchMean };

Reduction reduction_of(py::handle value, const char* function) {
  const char* text = PyUnicode_Check(value.ptr()) ? PyUnicode_AsUTF8(value.ptr()) : nullptr;
  if (text != nullptr) {
    if (std::strcmp(text, "batchmean") == 0) return Reduction::kBatchMean;
    if (std::strcmp(text, "mean") == 0) return Reduction::kMean;
    if (std::strcmp(text, "sum") == 0) return Reduction::kSum;
    if (std::strcmp(text, "none") == 0) return Reduction::kNone;
  }
  PyErr_Clear();
  raise_value(function, "reduction", "be 'none', 'sum', 'mean' or 'batchmean'", repr_of(value));
}

double number(py::handle value, const char* function, const char* argument) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    raise_type(function, argument, "be a number", repr_of(value));
  }
  return number;
}

double temperature(py::handle value, const char* function, const char* argument) {
  const double result = number(value, function, argument);
  // Written so that NaN fails as well.
  if (!(result >= kMinTemperature && result <= kMaxTemperature)) {
    raise_value(function, argument, "be between 1e-8 and 1e8", repr_of(value));
  }
  return result;
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

// A tensor whose rows the kernels can read: itself, or a copy that `owner` keeps alive.
dlpack::Tensor with_adjacent_columns(const dlpack::Tensor& view, py::handle object,
                                     py::object& owner, ArgumentName name) {
  if (has_adjacent_columns(view)) return view;
  owner = object.attr("contiguous")();
  return view_of(owner, name);
}

py::object new_tensor(const dlpack::Tensor& like, py::handle like_object, bool float64,
                      std::int64_t length) {
  const Torch& torch = torch_api();
  py::object shape = length < 0 ? py::object(py::tuple(0)) : py::object(py::make_tuple(length));
  PyObject* dtype = float64 ? torch.float64 : torch.float32;
  PyObject* result;
  if (like.device.type == dlpack::kCpu) {
    static PyObject* const names = PyTuple_Pack(1, PyUnicode_InternFromString("dtype"));
    PyObject* arguments[] = {shape.ptr(), dtype};
    result = PyObject_Vectorcall(torch.empty, arguments, 1, names);
  } else {
    static PyObject* const names = PyTuple_Pack(2, PyUnicode_InternFromString("dtype"),
                                                PyUnicode_InternFromString("device"));
    const py::object device = like_object.attr("device");
    PyObject* arguments[] = {shape.ptr(), dtype, device.ptr()};
    result = PyObject_Vectorcall(torch.empty, arguments, 1, names);
  }
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

py::object empty_like(py::handle object) {
  PyObject* argument = object.ptr();
  PyObject* result = PyObject_Vectorcall(torch_api().empty_like, &argument, 1, nullptr);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// weight as the kernels want it: adjacent values of the arithmetic type.
const void* weight_data(py::handle weight, const dlpack::Tensor& reference, const char* reference_name,
                        bool float64, py::object& owner, const char* function) {
  if (weight.is_none()) return nullptr;
  const ArgumentName name{function, "weight"};
  dlpack::Tensor view = view_of(weight, name);
  if (!is_float(view)) float_dtype(view, name);
  if (view.dimensions != 1 || view.shape[0] != reference.shape[0]) {
    const std::string constraint = "be [" + std::to_string(reference.shape[0]) + "], one per row";
    raise_value(function, "weight", constraint.c_str(), shape_text(view));
  }
  check_same_device(view, reference, reference_name, name);
  const bool adjacent = view.strides == nullptr || view.shape[0] < 2 || view.strides[0] == 1;
  if (adjacent && view.dtype.bits == (float64 ? 64 : 32)) return view.data;
  const Torch& torch = torch_api();
  owner = weight.attr("to")(py::handle(float64 ? torch.float64 : torch.float32)).attr("contiguous")();
  return view_of(owner, name).data;
}

struct Outputs {
  py::object loss;
  py::object grad;
};

// The arguments of one call and the temporaries that keep them readable until it returns.
struct Call {
  DistillArgs args;
  dlpack::Tensor student;
  py::object student_owner;
  py::object teacher_owner;
  py::object mask_owner;
  py::object weight_owner;
};

void read_mask(Call& call, py::handle mask, const char* function) {
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
      const std::string constraint = "be [actions] or [batch, actions] for student_logits " +
                                     shape_text(call.student);
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

void read_logits(Call& call, py::handle student, py::handle teacher, const char* function) {
  const ArgumentName student_name{function, "student_logits"};
  const ArgumentName teacher_name{function, "teacher_logits"};
  call.student = view_of(student, student_name);
  check_matrix(call.student, student_name);
  const DType student_dtype = float_dtype(call.student, student_name);
  dlpack::Tensor other = view_of(teacher, teacher_name);
  check_shape(other, call.student, "student_logits", teacher_name);
  const DType teacher_dtype = float_dtype(other, teacher_name);
  check_same_device(other, call.student, "student_logits", teacher_name);
  const dlpack::Tensor rows =
      with_adjacent_columns(call.student, student, call.student_owner, student_name);
  other = with_adjacent_columns(other, teacher, call.teacher_owner, teacher_name);
  call.args.student = {rows.data, student_dtype, row_stride(rows)};
  call.args.teacher = {other.data, teacher_dtype, row_stride(other)};
  call.args.batch = call.student.shape[0];
  call.args.actions = call.student.shape[1];
}

double scale_of(Reduction reduction, LossKind kind, std::int64_t batch, std::int64_t actions) {
  if (reduction == Reduction::kNone || reduction == Reduction::kSum) return 1.0;
  // nll has one term per row where the others have one per action.
  const bool per_row = reduction == Reduction::kBatchMean || kind == LossKind::kNll;
  const double terms = static_cast<double>(batch) * (per_row ? 1.0 : static_cast<double>(actions));
  return terms > 0 ? 1.0 / terms : 1.0;  // an empty batch has loss 0
}

// The gradient's memory: the caller's, or new.
void place_gradient(Call& call, py::handle student, py::handle out_grad, const char* function,
                    Outputs& out) {
  const ArgumentName name{function, "out_grad"};
  out.grad = out_grad.is_none() ? empty_like(call.student_owner ? py::handle(call.student_owner) : student)
                                : py::reinterpret_borrow<py::object>(out_grad);
  dlpack::Tensor view = view_of(out.grad, name);
  if (!out_grad.is_none()) {
    check_shape(view, call.student, "student_logits", name);
    if (float_dtype(view, name) != call.args.student.dtype) {
      raise_type(function, "out_grad", "have the dtype of student_logits", repr_of(out_grad.attr("dtype")));
    }
    check_same_device(view, call.student, "student_logits", name);
    const bool overlaps = view.shape[0] > 1 && row_stride(view) < view.shape[1];
    if (!has_adjacent_columns(view) || overlaps) {
      raise_value(function, "out_grad", "have adjacent columns and separate rows",
                  "strides " + repr_of(out_grad.attr("stride")()));
    }
    if (view.data == call.args.student.data || view.data == call.args.teacher.data) {
      raise_value(function, "out_grad", "be other memory than the logits", "the same address");
    }
  } else if (!has_adjacent_columns(view)) {
    // empty_like keeps the strides of a dense tensor, also those of an expanded or transposed one.
    out.grad = out.grad.attr("contiguous")();
    view = view_of(out.grad, name);
  }
  call.args.grad = view.data;
  call.args.grad_row_stride = row_stride(view);
}

void launch(const Call& call) {
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
  Call call;
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
  const Reduction reduction = reduction_of(reduction_name, function);
  args.scale = scale_of(reduction, args.kind, args.batch, args.actions);
  read_mask(call, action_mask, function);
  const bool float64 = uses_float64(args);
  args.weight =
      weight_data(weight, call.student, "student_logits", float64, call.weight_owner, function);

  Outputs out;
  out.grad = py::none();
  if (with_grad) place_gradient(call, student, out_grad, function, out);
  const bool per_row = reduction == Reduction::kNone;
  out.loss = new_tensor(call.student, student, float64, per_row ? args.batch : -1);
  (per_row ? args.row_loss : args.loss) = view_of(out.loss, {function, "loss"}).data;
  launch(call);
  return py::make_tuple(std::move(out.loss), std::move(out.grad));
}

}  // namespace

void register_losses(py::module_& m) {
  m.def("distill", &distill,
        "(loss, grad or None) of one distillation loss; see fastdistill.losses for the meaning.");
  m.def("cpu_isa", &cpu_isa, "The instruction set of the CPU kernels: baseline, avx2 or avx512.");
}

}  // namespace fastdistill
