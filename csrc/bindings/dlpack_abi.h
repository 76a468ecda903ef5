// SPDX-License-Identifier: MIT
// The part of DLPack 1.3's C interface through which torch (2.10 and later) describes a tensor in
// some 50 ns, without this module being linked with torch: type.__dlpack_c_exchange_api__ holds a
// capsule "dlpack_exchange_api" with the function table below. Layout fixed by the DLPack standard.
#pragma once

#include <cstdint>

namespace fastdistill::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : std::uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBFloat = 4,
  kComplex = 5,
  kBool = 6
};

struct Device {
  std::int32_t type;
  std::int32_t index;
};

struct Type {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t dimensions;
  Type dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct ManagedTensor {
  Version version;
  void* context;
  void (*deleter)(ManagedTensor* self);
  std::uint64_t flags;
  Tensor tensor;
};

struct ExchangeApi {
  Version version;
  void* previous;
  void* allocate;
  void* managed_from_object;
  // Takes the tensor over; 0, or -1 with a Python exception set.
  int (*managed_to_object)(ManagedTensor* tensor, void** out);
  // 0, or -1 with a Python exception set. The view lives as long as the object does.
  int (*tensor_from_object)(void* object, Tensor* out);
  int (*current_stream)(std::int32_t device_type, std::int32_t device_index, void** out);
};

}  // namespace fastdistill::dlpack
