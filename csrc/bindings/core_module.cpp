// SPDX-License-Identifier: MIT
// The extension module fastdistill._core: CPU losses, convolutions, replay.
// Python arguments come in here and errors go out; no computation lives in this folder.
#include <pybind11/pybind11.h>

#include "bindings/frames_binding.h"
#include "bindings/loss_binding.h"
#include "bindings/replay_binding.h"
#include "bindings/tensor_view.h"
#include "bindings/torch_threads.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native half of fastdistill: losses, convolutions and replay on the CPU.";
  m.def(
      "bind_torch",
      [](const py::module_& torch) {
        fastdistill::bind_torch(torch);
        return fastdistill::use_torch_threads();
      },
      "Connects to the loaded torch; False if its thread pool was not found.");
  fastdistill::register_distill(m);
  fastdistill::register_topk(m);
  fastdistill::register_td(m);
  fastdistill::register_frames(m);
  fastdistill::register_replay(m);
}
