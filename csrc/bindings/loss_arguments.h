// SPDX-License-Identifier: MIT
// What the losses' entries share: reading options and matrices.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/tensor_view.h"

namespace fastdistill {

// Below this many elements the work is shorter than giving the interpreter away and back.
inline constexpr std::int64_t kReleaseGilElements = 16384;

enum class Reduction : int { kNone, kSum, kMean, kBatchMean };

Reduction reduction_of(pybind11::handle value, const char* function, bool with_batchmean);
double number(pybind11::handle value, const char* function, const char* argument);

void check_matrix(const dlpack::Tensor& tensor, ArgumentName name);
void check_shape(const dlpack::Tensor& tensor, const dlpack::Tensor& reference,
                 const char* reference_name, ArgumentName name);
void check_rows(const dlpack::Tensor& tensor, const dlpack::Tensor& reference, ArgumentName name);
bool has_adjacent_columns(const dlpack::Tensor& tensor);
std::int64_t row_stride(const dlpack::Tensor& tensor);

// torch's description of a tensor does not tell that its sign bit is virtual.
void refuse_negated_view(pybind11::handle tensor, ArgumentName name);

// A tensor whose rows the kernels can read: itself, or a copy that `owner` keeps alive.
dlpack::Tensor with_adjacent_columns(const dlpack::Tensor& view, pybind11::handle object,
                                     pybind11::object& owner, ArgumentName name);

// One value per row of `reference` as adjacent values of float64 or float32.
const void* row_values(pybind11::handle values, const dlpack::Tensor& view,
                       const dlpack::Tensor& reference, const char* reference_name, bool float64,
                       pybind11::object& owner, ArgumentName name);

// The same of weights, null for None; they may be bool as well: True keeps a row, False silences
// it.
const void* row_weights(pybind11::handle weight, const dlpack::Tensor& reference,
                        const char* reference_name, bool float64, pybind11::object& owner,
                        const char* function);

// The arguments of one call and the temporaries that keep them readable until it returns.
struct DistillCall {
  DistillArgs args;
  dlpack::Tensor student;
  pybind11::object student_owner;
  pybind11::object teacher_owner;
  pybind11::object mask_owner;
  pybind11::object weight_owner;
};

double temperature(pybind11::handle value, const char* function, const char* argument);
double scale_of(Reduction reduction, LossKind kind, std::int64_t batch, std::int64_t actions);
void read_student(DistillCall& call, pybind11::handle student, const char* function);
void read_mask(DistillCall& call, pybind11::handle mask, const char* function);

// The tensors that the kernel writes to: the gradient, [batch, actions], and the loss, [] or
// [batch].
pybind11::object place_gradient(DistillCall& call, pybind11::handle student);
pybind11::object place_loss(DistillCall& call, Reduction reduction, pybind11::handle student);

}  // namespace fastdistill
