// SPDX-License-Identifier: MIT
// Arguments of td_loss, as distill_binding.cpp for the distillation losses.
#include <string>

#include "bindings/cuda_bridge.h"
#include "bindings/loss_arguments.h"
#include "bindings/loss_binding.h"
#include "bindings/result_tensor.h"
#include "losses/cpu_dispatch.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

constexpr const char* kFunction = "td_loss";

const std::int64_t* read_actions(py::handle action, const dlpack::Tensor& q, py::object& owner) {
  const ArgumentName name{kFunction, "action"};
  dlpack::Tensor view = view_of(action, name);
  if (view.dtype.code != dlpack::kInt || view.dtype.bits != 64) {
    raise_type(kFunction, "action", "be int64", repr_of(action.attr("dtype")));
  }
  check_rows(view, q, name);
  check_same_device(view, q, "q", name);
  // A negated view needs no refusal: what lies in memory is no action, but for 0, which is the
  // same.
  if (view.strides != nullptr && view.shape[0] > 1 && view.strides[0] != 1) {
    owner = action.attr("contiguous")();
    view = view_of(owner, name);
  }
  return static_cast<const std::int64_t*>(view.data);
}

void launch(const TdArgs& args, const dlpack::Tensor& q) {
  if (q.device.type == dlpack::kCuda) {
    td_on_cuda(args, q.device.index);
    return;
  }
  const std::int64_t bad_row = td_cpu(args);
  if (bad_row < 0) return;
  const std::string constraint = "be in [0, " + std::to_string(args.actions) + ")";
  raise(PyExc_IndexError, kFunction, "action", constraint.c_str(),
        std::to_string(args.action[bad_row]) + " in row " + std::to_string(bad_row));
}

// (loss, td_abs, grad or None)
py::tuple td(int kind, py::handle q, py::handle action, py::handle target, py::handle weight,
             py::handle reduction_name, bool with_grad) {
  const ArgumentName q_name{kFunction, "q"};
  const dlpack::Tensor given = view_of(q, q_name);
  check_matrix(given, q_name);
  if (given.dtype.code != dlpack::kFloat || given.dtype.bits < 32) {
    raise_type(kFunction, "q", "be float64 or float32", repr_of(q.attr("dtype")));
  }
  refuse_negated_view(q, q_name);
  py::object q_owner;
  py::object action_owner;
  py::object target_owner;
  py::object weight_owner;
  const dlpack::Tensor rows = with_adjacent_columns(given, q, q_owner, q_name);
  const bool float64 = given.dtype.bits == 64;
  const Reduction reduction = reduction_of(reduction_name, kFunction, false);
  TdArgs args;
  args.kind = static_cast<TdKind>(kind);
  args.batch = given.shape[0];
  args.actions = given.shape[1];
  args.q = {rows.data, float_dtype(rows, q_name), row_stride(rows)};
  args.action = read_actions(action, given, action_owner);
  const ArgumentName target_name{kFunction, "target"};
  args.target = row_values(target, view_of(target, target_name), given, "q", float64, target_owner,
                           target_name);
  args.weight = row_weights(weight, given, "q", float64, weight_owner, kFunction);
  args.scale =
      reduction == Reduction::kMean && args.batch > 0 ? 1.0 / static_cast<double>(args.batch) : 1.0;

  const bool per_row = reduction == Reduction::kNone;
  ResultTensor loss = per_row ? result_tensor({args.batch}, given.dtype, given, q)
                              : result_tensor({}, given.dtype, given, q);
  ResultTensor td_abs = result_tensor({args.batch}, given.dtype, given, q);
  ResultTensor grad{py::none(), nullptr};
  if (with_grad) grad = result_tensor({args.batch, args.actions}, given.dtype, given, q);
  (per_row ? args.row_loss : args.loss) = loss.data;
  args.td_abs = td_abs.data;
  args.grad = grad.data;
  launch(args, given);
  return py::make_tuple(std::move(loss.tensor), std::move(td_abs.tensor), std::move(grad.tensor));
}

}  // namespace

void register_td(py::module_& m) {
  m.def("td", &td, "(loss, td_abs, grad or None) of td_loss; see fastdistill.losses.");
}

}  // namespace fastdistill
