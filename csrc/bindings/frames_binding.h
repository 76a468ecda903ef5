// SPDX-License-Identifier: MIT
#pragma once

#include <pybind11/pybind11.h>

namespace fastdistill {

void register_frames(pybind11::module_& m);

}  // namespace fastdistill
