// SPDX-License-Identifier: MIT
// The torch tensors that a call returns. On the CPU the memory is ours and torch takes it over
// through DLPack, in a third of the time of torch.empty: of a small batch's few microseconds that
// is one.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>

#include "bindings/tensor_view.h"

namespace fastdistill {

struct ResultTensor {
  pybind11::object tensor;
  void* data;  // where its elements go
};

// An uninitialised, contiguous tensor of at most two dimensions on the device of `like`. `dtype` is
// that of `like`, float32 or float64.
ResultTensor result_tensor(std::initializer_list<std::int64_t> shape, dlpack::Type dtype,
                           const dlpack::Tensor& like, pybind11::handle like_object);

// The dtype of losses and of priorities.
inline dlpack::Type arithmetic_type(bool float64) {
  return {dlpack::kFloat, static_cast<std::uint8_t>(float64 ? 64 : 32), 1};
}

}  // namespace fastdistill
