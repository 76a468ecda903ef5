// SPDX-License-Identifier: MIT
#pragma once

#include <pybind11/pybind11.h>

namespace fastdistill {

void register_distill(pybind11::module_& m);
void register_topk(pybind11::module_& m);
void register_td(pybind11::module_& m);

}  // namespace fastdistill
