// SPDX-License-Identifier: MIT
// The replay's part of fastdistill._core.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdistill {

void register_replay(pybind11::module_& m);

}  // namespace fastdistill
