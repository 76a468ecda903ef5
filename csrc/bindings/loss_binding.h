// SPDX-License-Identifier: MIT
#pragma once

#include <pybind11/pybind11.h>

namespace fastdistill {

void register_losses(pybind11::module_& m);

}  // namespace fastdistill
