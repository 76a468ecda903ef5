// SPDX-License-Identifier: MIT
// The extension module fastdistill._core: CPU losses and replay.
// Python arguments come in here and errors go out; no computation lives in this folder.
#include <pybind11/pybind11.h>

#include "bindings/replay_binding.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native half of fastdistill: losses and replay on the CPU.";
  fastdistill::register_replay(m);
}
