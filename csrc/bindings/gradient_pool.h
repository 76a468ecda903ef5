// SPDX-License-Identifier: MIT
// Memory for large gradients on the CPU, recycled from step to step. malloc gives large blocks back
// to the system as soon as they are freed; touching fresh pages again in every step then costs more
// than the loss itself. The pool keeps a few freed blocks instead, as torch's CUDA allocator does.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/tensor_view.h"

namespace fastdistill {

// Smaller gradients come from torch.empty_like.
inline constexpr std::int64_t kMinPooledBytes = std::int64_t{1} << 20;

// An uninitialised [rows, columns] torch tensor of `dtype` on the CPU, contiguous. Its memory goes
// back to the pool when torch frees it, on whatever thread that is.
pybind11::object pooled_tensor(std::int64_t rows, std::int64_t columns, dlpack::Type dtype);

// What the pool holds for reuse at the moment.
std::int64_t pooled_bytes();

}  // namespace fastdistill
