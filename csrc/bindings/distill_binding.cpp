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

constexpr double kMinTemperature = 1e-8;
constexpr double kMaxTemperature = 1e8;
double temperature(py::handle value, const char* function, const char* argument) {
  const double result = number(value, function, argument);
  // Written so that NaN fails as well.
  if (!(result >= kMinTemperature && result <= kMaxTemperature)) {
    raise_value(function, argument, "be between 1e-8 and 1e8", repr_of(value));
  }
  return result;
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
  refuse_negated_view(student, student_name);
  refuse_negated_view(teacher, teacher_name);
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

void check_out_grad(const Call& call, py::handle out_grad, const char* function) {
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
}

void place_gradient(Call& call, py::handle student, py::handle out_grad, const char* function,
                    Outputs& out) {
  if (out_grad.is_none()) {
    const dlpack::Tensor& like = call.student;
    out.grad = result_tensor({like.shape[0], like.shape[1]}, like.dtype, like, student);
  } else {
    check_out_grad(call, out_grad, function);
    out.grad = py::reinterpret_borrow<py::object>(out_grad);
  }
  const dlpack::Tensor view = view_of(out.grad, {function, "out_grad"});
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
  const Reduction reduction = reduction_of(reduction_name, function, true);
  args.scale = scale_of(reduction, args.kind, args.batch, args.actions);
  read_mask(call, action_mask, function);
  const bool float64 = uses_float64(args);
  args.weight = row_values(weight, call.student, "student_logits", float64, call.weight_owner,
                           {function, "weight"});

  Outputs out;
  out.grad = py::none();
  if (with_grad) place_gradient(call, student, out_grad, function, out);
  const bool per_row = reduction == Reduction::kNone;
  const dlpack::Type loss_type = arithmetic_type(float64);
  out.loss = per_row ? result_tensor({args.batch}, loss_type, call.student, student)
                     : result_tensor({}, loss_type, call.student, student);
  (per_row ? args.row_loss : args.loss) = view_of(out.loss, {function, "loss"}).data;
  launch(call);
  return py::make_tuple(std::move(out.loss), std::move(out.grad));
}

}  // namespace

void register_distill(py::module_& m) {
  m.def("distill", &distill,
        "(loss, grad or None) of one distillation loss; see fastdistill.losses for the meaning.");
  m.def("pooled_bytes", &pooled_bytes, "Memory that is kept for the gradients of later steps.");
  m.def("cpu_isa", &cpu_isa, "The instruction set of the CPU kernels: baseline, avx2 or avx512.");
}

}  // namespace fastdistill
