// SPDX-License-Identifier: MIT
#include "bindings/result_tensor.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "bindings/gradient_pool.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

constexpr std::size_t kAlignment = 64;

constexpr std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// What DLPack's consumer reads and releases. Small tensors have their elements behind it in the
// same block of malloc, large ones in a block of the pool.
struct OwnedTensor {
  dlpack::ManagedTensor managed;
  std::int64_t shape[2];
  std::int64_t strides[2];
  PoolBlock pooled;
};

void release(dlpack::ManagedTensor* managed) {
  const auto* tensor = static_cast<const OwnedTensor*>(managed->context);
  if (tensor->pooled.data != nullptr) give_to_pool(tensor->pooled);
  std::free(managed->context);
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

ResultTensor cpu_tensor(std::initializer_list<std::int64_t> shape, dlpack::Type dtype) {
  std::size_t bytes = dtype.bits / 8;
  for (const std::int64_t length : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(length), &bytes)) {
      throw std::bad_alloc();
    }
  }
  const bool pooled = bytes >= kMinPooledBytes;
  constexpr std::size_t kHeadBytes = aligned(sizeof(OwnedTensor));
  std::unique_ptr<void, Free> memory(
      std::aligned_alloc(kAlignment, kHeadBytes + (pooled ? 0 : aligned(bytes))));
  if (memory == nullptr) throw std::bad_alloc();
  auto* tensor = new (memory.get()) OwnedTensor{};
  if (pooled) tensor->pooled = take_from_pool(bytes);
  void* data = pooled ? tensor->pooled.data : static_cast<char*>(memory.get()) + kHeadBytes;
  const auto dimensions = static_cast<std::int32_t>(shape.size());
  std::int64_t stride = 1;
  for (int i = dimensions; i-- > 0;) {
    tensor->shape[i] = shape.begin()[i];
    tensor->strides[i] = stride;
    stride *= std::max<std::int64_t>(tensor->shape[i], 1);
  }
  const dlpack::ExchangeApi* api = torch_api().api;
  tensor->managed = {{api->version.major, api->version.minor}, tensor, &release, 0, {}};
  tensor->managed.tensor = {data,          {dlpack::kCpu, 0}, dimensions, dtype,
                            tensor->shape, tensor->strides,   0};
  // From here on torch owns the memory and calls `release`, also if it fails.
  auto* const owned = static_cast<OwnedTensor*>(memory.release());
  void* object = nullptr;
  if (api->managed_to_object(&owned->managed, &object) != 0) throw py::error_already_set();
  return {py::reinterpret_steal<py::object>(static_cast<PyObject*>(object)), data};
}

py::object torch_empty(std::initializer_list<std::int64_t> shape, dlpack::Type dtype,
                       const dlpack::Tensor& like, py::handle like_object) {
  py::tuple lengths(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) lengths[i] = shape.begin()[i];
  const py::object new_empty = like_object.attr("new_empty");
  if (dtype.code == like.dtype.code && dtype.bits == like.dtype.bits) return new_empty(lengths);
  const Torch& torch = torch_api();
  return new_empty(lengths,
                   py::arg("dtype") = py::handle(dtype.bits == 64 ? torch.float64 : torch.float32));
}

}  // namespace

ResultTensor result_tensor(std::initializer_list<std::int64_t> shape, dlpack::Type dtype,
                           const dlpack::Tensor& like, py::handle like_object) {
  if (like.device.type == dlpack::kCpu) return cpu_tensor(shape, dtype);
  py::object tensor = torch_empty(shape, dtype, like, like_object);
  void* const data = view_of(tensor, {"result_tensor", "result"}).data;
  return {std::move(tensor), data};
}

}  // namespace fastdistill
