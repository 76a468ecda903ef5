// SPDX-License-Identifier: MIT
#include "bindings/tensor_view.h"

namespace py = pybind11;

namespace fastdistill {
namespace {
Torch bound;
}

const Torch& torch_api() { return bound; }

void bind_torch(const py::module_& torch) {
  const py::object type = torch.attr("Tensor");
  const py::object capsule = py::getattr(type, "__dlpack_c_exchange_api__", py::none());
  if (capsule.is_none()) {
    throw py::import_error("fastdistill: torch must be 2.10 or later, got " +
                           py::str(torch.attr("__version__")).cast<std::string>());
  }
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) throw py::error_already_set();
  if (api->version.major != 1 || api->tensor_from_object == nullptr) {
    throw py::import_error("fastdistill: torch must offer version 1 of the DLPack exchange, got " +
                           std::to_string(api->version.major));
  }
  // These live as long as the process: references are kept on purpose.
  bound.tensor_type = reinterpret_cast<PyTypeObject*>(py::object(type).release().ptr());
  bound.float32 = torch.attr("float32").cast<py::object>().release().ptr();
  bound.float64 = torch.attr("float64").cast<py::object>().release().ptr();
  bound.is_neg = type.attr("is_neg").cast<py::object>().release().ptr();
  bound.api = api;
}

void raise(PyObject* type, const char* function, const char* argument, const char* constraint,
           const std::string& got) {
  PyErr_Format(type, "%s: %s must %s, got %s", function, argument, constraint, got.c_str());
  throw py::error_already_set();
}

void raise_value(const char* function, const char* argument, const char* constraint,
                 const std::string& got) {
  raise(PyExc_ValueError, function, argument, constraint, got);
}

void raise_type(const char* function, const char* argument, const char* constraint,
                const std::string& got) {
  raise(PyExc_TypeError, function, argument, constraint, got);
}

std::string repr_of(py::handle object) { return py::repr(object).cast<std::string>(); }

std::string shape_text(const dlpack::Tensor& tensor) {
  std::string text = "[";
  for (int i = 0; i < tensor.dimensions; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(tensor.shape[i]);
  }
  return text + "]";
}

std::string device_text(const dlpack::Tensor& tensor) {
  if (tensor.device.type == dlpack::kCpu || tensor.device.type == dlpack::kCudaHost) return "cpu";
  if (tensor.device.type == dlpack::kCuda) return "cuda:" + std::to_string(tensor.device.index);
  return "DLPack device " + std::to_string(tensor.device.type);
}

dlpack::Tensor view_of(py::handle object, ArgumentName name) {
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type != bound.tensor_type && !PyType_IsSubtype(type, bound.tensor_type)) {
    raise_type(name.function, name.argument, "be a torch.Tensor", type->tp_name);
  }
  dlpack::Tensor view;
  if (bound.api->tensor_from_object(object.ptr(), &view) != 0) {
    PyErr_Clear();
    raise_type(name.function, name.argument, "be a dense tensor on the CPU or a CUDA device",
               repr_of(object.attr("device")) + " with layout " + repr_of(object.attr("layout")));
  }
  if (view.device.type == dlpack::kCudaHost) view.device = {dlpack::kCpu, 0};  // pinned memory
  if (view.device.type != dlpack::kCpu && view.device.type != dlpack::kCuda) {
    raise_type(name.function, name.argument, "be on the CPU or a CUDA device",
               repr_of(object.attr("device")));
  }
  if (view.data == nullptr) {
    // A tensor that only stands for one (FakeTensor and the like) has a shape but no memory.
    std::int64_t elements = 1;
    for (int i = 0; i < view.dimensions; ++i) elements *= view.shape[i];
    if (elements != 0) raise_type(name.function, name.argument, "hold data", type->tp_name);
  }
  view.data = static_cast<char*>(view.data) + view.byte_offset;
  return view;
}

bool is_float(const dlpack::Tensor& tensor) {
  const bool wide = tensor.dtype.bits == 64 || tensor.dtype.bits == 32;
  return tensor.dtype.lanes == 1 &&
         ((tensor.dtype.code == dlpack::kFloat && wide) ||
          (tensor.dtype.bits == 16 &&
           (tensor.dtype.code == dlpack::kFloat || tensor.dtype.code == dlpack::kBFloat)));
}

namespace {

// As torch spells it, for the dtypes that users hold by mistake.
std::string dtype_text(dlpack::Type dtype) {
  const std::string bits = std::to_string(dtype.bits);
  switch (dtype.code) {
    case dlpack::kInt:
      return "torch.int" + bits;
    case dlpack::kUInt:
      return "torch.uint" + bits;
    case dlpack::kComplex:
      return "torch.complex" + bits;
    case dlpack::kBool:
      return "torch.bool";
    default:
      return "DLPack type code " + std::to_string(dtype.code) + " with " + bits + " bits";
  }
}

}  // namespace

DType float_dtype(const dlpack::Tensor& tensor, ArgumentName name) {
  if (!is_float(tensor)) {
    raise_type(name.function, name.argument, "be float64, float32, bfloat16 or float16",
               dtype_text(tensor.dtype));
  }
  if (tensor.dtype.code == dlpack::kBFloat) return DType::kBFloat16;
  return tensor.dtype.bits == 64   ? DType::kFloat64
         : tensor.dtype.bits == 32 ? DType::kFloat32
                                   : DType::kFloat16;
}

bool same_device(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  return a.device.type == b.device.type && a.device.index == b.device.index;
}

void check_same_device(const dlpack::Tensor& tensor, const dlpack::Tensor& reference,
                       const char* reference_name, ArgumentName name) {
  if (same_device(tensor, reference)) return;
  const std::string constraint =
      std::string("be on the device of ") + reference_name + " (" + device_text(reference) + ")";
  raise_value(name.function, name.argument, constraint.c_str(), device_text(tensor));
}

}  // namespace fastdistill
