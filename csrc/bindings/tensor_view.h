// SPDX-License-Identifier: MIT
// A torch tensor as the native code sees it, and the errors that a wrong one raises.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bindings/dlpack_abi.h"
#include "losses/loss_args.h"

namespace fastdistill {

// What this module needs of torch; filled once by bind_torch.
struct Torch {
  PyTypeObject* tensor_type = nullptr;
  const dlpack::ExchangeApi* api = nullptr;
  PyObject* float32 = nullptr;
  PyObject* float64 = nullptr;
  PyObject* is_neg = nullptr;  // torch.Tensor.is_neg
};

const Torch& torch_api();
void bind_torch(const pybind11::module_& torch);

// `<function>: <argument> must <constraint>, got <value>`
[[noreturn]] void raise(PyObject* type, const char* function, const char* argument,
                        const char* constraint, const std::string& got);
[[noreturn]] void raise_value(const char* function, const char* argument, const char* constraint,
                              const std::string& got);
[[noreturn]] void raise_type(const char* function, const char* argument, const char* constraint,
                             const std::string& got);

std::string repr_of(pybind11::handle object);
std::string shape_text(const dlpack::Tensor& tensor);
std::string device_text(const dlpack::Tensor& tensor);

// Where an argument came from, for its errors.
struct ArgumentName {
  const char* function;
  const char* argument;
};

dlpack::Tensor view_of(pybind11::handle object, ArgumentName name);
bool is_float(const dlpack::Tensor& tensor);
DType float_dtype(const dlpack::Tensor& tensor, ArgumentName name);
bool same_device(const dlpack::Tensor& a, const dlpack::Tensor& b);
void check_same_device(const dlpack::Tensor& tensor, const dlpack::Tensor& reference,
                       const char* reference_name, ArgumentName name);

}  // namespace fastdistill
