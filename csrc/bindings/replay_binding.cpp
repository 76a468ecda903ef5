// SPDX-License-Identifier: MIT
// Python's way to csrc/replay: arrays become pointers, the GIL is released, exceptions become
// Python's. The package fastdistill.replay is the only caller and has checked shapes and dtypes;
// what can go wrong with values is checked behind this layer.
#include "bindings/replay_binding.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <system_error>

#include "replay/replay.h"
#include "replay/snapshot.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

using replay::DirectSync;
using Replay = replay::Replay<DirectSync>;

// A batch's place in memory: made once per set of arrays and then handed to every sample().
struct BatchArrays {
  std::size_t num_rows;
  replay::BatchOut out;
  std::vector<py::array> keep_alive;
};

template <class T>
T* writable(const py::array& array) {
  return static_cast<T*>(const_cast<void*>(array.data()));
}

BatchArrays make_batch(const py::array& obs, const py::array& action, const py::array& reward,
                       const py::array& discount, const py::array& next_obs,
                       const py::array& weight, const py::array& id, const py::array& task,
                       const std::vector<py::array>& columns) {
  BatchArrays batch;
  batch.num_rows = static_cast<std::size_t>(id.size());
  batch.out = {.obs = writable<std::byte>(obs),
               .next_obs = next_obs.size() > 0 ? writable<std::byte>(next_obs) : nullptr,
               .action = writable<std::int64_t>(action),
               .id = writable<std::int64_t>(id),
               .task = writable<std::int64_t>(task),
               .reward = writable<float>(reward),
               .discount = writable<float>(discount),
               .weight = writable<float>(weight),
               .columns = {}};
  for (const py::array& column : columns) {
    batch.out.columns.push_back(writable<std::byte>(column));
  }
  batch.keep_alive = columns;
  batch.keep_alive.insert(batch.keep_alive.end(),
                          {obs, action, reward, discount, next_obs, weight, id, task});
  return batch;
}

template <class T>
using Rows = py::array_t<T, py::array::c_style>;

template <class T>
const T* rows_or_null(const std::optional<Rows<T>>& rows) {
  return rows ? rows->data() : nullptr;
}

void append(Replay& self, const Rows<std::int64_t>& lanes, const py::array& frame,
            const Rows<std::int64_t>& action, const Rows<float>& reward,
            const Rows<bool>& terminated, const Rows<bool>& truncated,
            const std::optional<Rows<bool>>& boundary, const std::optional<Rows<float>>& priority,
            const std::vector<py::array>& columns) {
  replay::AppendIn in{.lanes = {lanes.data(), static_cast<std::size_t>(lanes.size())},
                      .frame = static_cast<const std::byte*>(frame.data()),
                      .action = action.data(),
                      .reward = reward.data(),
                      .terminated = terminated.data(),
                      .truncated = truncated.data(),
                      .boundary = rows_or_null(boundary),
                      .priority = rows_or_null(priority),
                      .columns = {}};
  for (const py::array& column : columns) {
    in.columns.push_back(static_cast<const std::byte*>(column.data()));
  }
  const py::gil_scoped_release nogil;
  self.append(in);
}

void sample(Replay& self, std::size_t sampler, const BatchArrays& batch, double importance_exponent,
            bool stratified, replay::WeightNormalization normalization,
            std::vector<double> task_weights) {
  const replay::SampleOptions options{.importance_exponent = importance_exponent,
                                      .stratified = stratified,
                                      .normalization = normalization,
                                      .task_weights = std::move(task_weights)};
  const py::gil_scoped_release nogil;
  self.sample(sampler, batch.num_rows, options, batch.out);
}

// Addresses of int64 [n], float32 [n] and bool [n], all contiguous: reading three tensors'
// addresses takes a tenth of the time of making three arrays of them.
void update(Replay& self, std::size_t sampler, std::uintptr_t id, std::uintptr_t priority,
            std::uintptr_t accepted, std::size_t num_rows) {
  const py::gil_scoped_release nogil;
  self.update(sampler, {reinterpret_cast<const std::int64_t*>(id), num_rows},
              {reinterpret_cast<const float*>(priority), num_rows},
              reinterpret_cast<bool*>(accepted));
}

void read(Replay& self, const Rows<std::int64_t>& id, const BatchArrays& batch) {
  const py::gil_scoped_release nogil;
  self.read({id.data(), batch.num_rows}, batch.out);
}

py::tuple priorities(const Replay& self, std::size_t sampler) {
  std::vector<replay::RowPriority> rows;
  {
    const py::gil_scoped_release nogil;
    rows = self.priorities(sampler);
  }
  py::array_t<std::int64_t> id(static_cast<py::ssize_t>(rows.size()));
  py::array_t<double> priority(static_cast<py::ssize_t>(rows.size()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    id.mutable_at(i) = rows[i].id;
    priority.mutable_at(i) = rows[i].priority;
  }
  return py::make_tuple(id, priority);
}

py::dict statistics(const Replay& self, std::size_t sampler) {
  const replay::Statistics s = self.statistics(sampler);
  py::dict out;
  out["live_rows"] = s.live_rows;
  out["appended_steps"] = s.appended_steps;
  out["stale_updates"] = s.stale_updates;
  out["clamped_weights"] = s.clamped_weights;
  out["redraws"] = s.redraws;
  out["scans"] = s.scans;
  out["max_priority"] = s.max_priority;
  return out;
}

void register_options(py::module_& m) {
  py::enum_<replay::InitialPriority>(m, "InitialPriority")
      .value("max", replay::InitialPriority::kMax)
      .value("max_live", replay::InitialPriority::kMaxLive)
      .value("fixed", replay::InitialPriority::kFixed);
  py::enum_<replay::WeightNormalization>(m, "WeightNormalization")
      .value("batch", replay::WeightNormalization::kBatch)
      .value("global_", replay::WeightNormalization::kGlobal)
      .value("none", replay::WeightNormalization::kNone);
  py::class_<replay::ReplayConfig>(m, "ReplayConfig")
      .def(py::init([](std::uint64_t lane_capacity_steps, std::uint32_t num_lanes,
                       std::vector<std::uint32_t> lanes_per_task, std::size_t frame_bytes,
                       std::vector<std::size_t> column_bytes, std::uint32_t stack,
                       std::uint32_t n_step, double discount, bool repeat_first_frame,
                       const std::vector<double>& priority_exponents,
                       replay::InitialPriority initial_priority, float fixed_initial_priority,
                       std::uint64_t seed) {
             replay::ReplayConfig config{.lane_capacity_steps = lane_capacity_steps,
                                         .num_lanes = num_lanes,
                                         .lanes_per_task = std::move(lanes_per_task),
                                         .frame_bytes = frame_bytes,
                                         .column_bytes = std::move(column_bytes),
                                         .stack = stack,
                                         .n_step = n_step,
                                         .discount = discount,
                                         .repeat_first_frame = repeat_first_frame,
                                         .samplers = {},
                                         .seed = seed};
             for (const double exponent : priority_exponents) {
               config.samplers.push_back({.priority_exponent = exponent,
                                          .initial_priority = initial_priority,
                                          .fixed_initial_priority = fixed_initial_priority});
             }
             replay::validate(config);
             return config;
           }),
           py::kw_only(), py::arg("lane_capacity_steps"), py::arg("num_lanes"),
           py::arg("lanes_per_task"), py::arg("frame_bytes"), py::arg("column_bytes"),
           py::arg("stack"), py::arg("n_step"), py::arg("discount"), py::arg("repeat_first_frame"),
           py::arg("priority_exponents"), py::arg("initial_priority"),
           py::arg("fixed_initial_priority"), py::arg("seed"))
      .def("required_bytes",
           [](const replay::ReplayConfig& self) { return replay::required_bytes(self); });
}

}  // namespace

void register_replay(py::module_& m) {
  register_options(m);
  py::register_local_exception_translator(
      [](std::exception_ptr error) {  // NOLINT(performance-unnecessary-value-param):
                                      // pybind11's type
        try {
          if (error) std::rethrow_exception(error);
        } catch (const std::system_error& failure) {
          errno = failure.code().value();
          PyErr_SetFromErrno(PyExc_OSError);
        }
      });
  py::class_<BatchArrays>(m, "ReplayBatch")
      .def(py::init(&make_batch), py::arg("obs"), py::arg("action"), py::arg("reward"),
           py::arg("discount"), py::arg("next_obs"), py::arg("weight"), py::arg("id"),
           py::arg("task"), py::arg("columns"));
  py::class_<Replay>(m, "Replay")
      .def(py::init<const replay::ReplayConfig&>(), py::arg("config"))
      .def("append", &append, py::arg("lanes"), py::arg("frame"), py::arg("action"),
           py::arg("reward"), py::arg("terminated"), py::arg("truncated"), py::arg("boundary"),
           py::arg("priority"), py::arg("columns"))
      .def("sample", &sample, py::arg("sampler"), py::arg("batch"), py::arg("importance_exponent"),
           py::arg("stratified"), py::arg("normalization"), py::arg("task_weights"))
      .def("update", &update, py::arg("sampler"), py::arg("id"), py::arg("priority"),
           py::arg("accepted"), py::arg("num_rows"))
      .def("read", &read, py::arg("id"), py::arg("batch"))
      .def("clear", &Replay::clear, py::call_guard<py::gil_scoped_release>())
      .def("live_rows", &Replay::live_rows)
      .def("priorities", &priorities, py::arg("sampler"))
      .def("statistics", &statistics, py::arg("sampler"))
      .def("check_valid", &Replay::check_valid, py::call_guard<py::gil_scoped_release>())
      .def("save", &replay::save_snapshot, py::arg("file"), py::arg("schema"),
           py::call_guard<py::gil_scoped_release>())
      .def("load", &replay::load_snapshot, py::arg("file"), py::arg("schema"),
           py::call_guard<py::gil_scoped_release>())
      // Where the slots lie: for the benchmark that copies the same frames without the replay.
      .def("memory_layout", [](Replay& self) {
        const auto& layout = self.storage().layout();
        return py::make_tuple(reinterpret_cast<std::uintptr_t>(self.storage().memory()),
                              layout.slot_bytes, layout.slots_per_lane);
      });
}

}  // namespace fastdistill
