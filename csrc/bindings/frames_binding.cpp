// SPDX-License-Identifier: MIT
// Arguments of the convolutions of csrc/frames: every tensor's type, layout and size is checked
// here, so that a mistake in the Python half never reaches memory.
#include "bindings/frames_binding.h"

#include <cstring>
#include <initializer_list>
#include <string>

#include "bindings/tensor_view.h"
#include "frames/convolution.h"
#include "losses/cpu_dispatch.h"

namespace py = pybind11;

namespace fastdistill {
namespace {

constexpr const char* kFunction = "convolve";

struct Wanted {
  std::uint8_t code;
  std::uint8_t bits;
  const char* name;
};
constexpr Wanted kBytes{dlpack::kUInt, 8, "uint8"};
constexpr Wanted kHalves{dlpack::kBFloat, 16, "bfloat16"};
constexpr Wanted kFloats{dlpack::kFloat, 32, "float32"};

template <class Element>
constexpr Wanted kImages = kHalves;
template <>
constexpr Wanted kImages<float> = kFloats;

bool is_contiguous(const dlpack::Tensor& view) {
  if (view.strides == nullptr) return true;
  for (int i = 0; i < view.dimensions; ++i) {
    if (view.shape[i] == 0) return true;
  }
  std::int64_t expected = 1;
  for (int i = view.dimensions - 1; i >= 0; --i) {
    if (view.shape[i] != 1 && view.strides[i] != expected) return false;
    expected *= view.shape[i];
  }
  return true;
}

bool has_type(const dlpack::Tensor& view, Wanted wanted) {
  return view.dtype.code == wanted.code && view.dtype.bits == wanted.bits && view.dtype.lanes == 1;
}

dlpack::Tensor dense(py::handle object, Wanted wanted, int dimensions, const char* argument) {
  const dlpack::Tensor view = view_of(object, {kFunction, argument});
  if (view.device.type != dlpack::kCpu) {
    raise_value(kFunction, argument, "be on the CPU", device_text(view));
  }
  if (!has_type(view, wanted)) {
    raise_type(kFunction, argument, (std::string("be ") + wanted.name).c_str(),
               repr_of(object.attr("dtype")));
  }
  if (view.dimensions != dimensions || !is_contiguous(view)) {
    const std::string constraint =
        "be contiguous with " + std::to_string(dimensions) + " dimensions";
    raise_value(kFunction, argument, constraint.c_str(), shape_text(view));
  }
  return view;
}

void* sized(py::handle object, Wanted wanted, std::initializer_list<std::int64_t> shape,
            const char* argument) {
  const dlpack::Tensor view = dense(object, wanted, static_cast<int>(shape.size()), argument);
  std::string text;
  bool equal = true;
  int i = 0;
  for (const std::int64_t size : shape) {
    if (i > 0) text += ", ";
    text += std::to_string(size);
    equal = equal && view.shape[i++] == size;
  }
  if (!equal) {
    raise_value(kFunction, argument, ("have shape [" + text + "]").c_str(), shape_text(view));
  }
  return view.data;
}

template <class Element>
bool fits(const frames::Convolution<Element>& conv) {
  const auto tiles = [&](std::int64_t extent) {
    return extent >= conv.kernel && extent % conv.stride == 0 &&
           (conv.frames == nullptr || extent >= 4);
  };
  const auto grouped = [](std::int64_t count) {
    return count > 0 && count % frames::kFilterGroup == 0 &&
           count <= frames::kFilterGroup * frames::kMaxFilterGroups;
  };
  // 2^22: so an image's values, padded, stay below 2^26, and offsets within 32 bits.
  return conv.kernel > 0 && conv.stride > 0 && conv.kernel % conv.stride == 0 &&
         tiles(conv.height) && tiles(conv.width) && grouped(conv.filters) &&
         (conv.frames != nullptr || grouped(conv.channels)) &&
         conv.height * conv.width * conv.channels < (std::int64_t{1} << 22);
}

// The input is images, or uint8 frames with the statistics (mean, scale, limit).
template <class Element>
frames::Convolution<Element> read(py::handle input, py::handle statistics, py::handle weight,
                                  std::int64_t stride, bool relu) {
  const bool folds = !statistics.is_none();
  const dlpack::Tensor x = dense(input, folds ? kBytes : kImages<Element>, 4, "input");
  const dlpack::Tensor w = dense(weight, kFloats, 4, "weight");
  frames::Convolution<Element> conv;
  const std::int64_t fold = folds ? 4 : 1;
  conv.batch = x.shape[0];
  conv.height = x.shape[folds ? 2 : 1] / fold;
  conv.width = x.shape[folds ? 3 : 2] / fold;
  conv.channels = (folds ? x.shape[1] : x.shape[3]) * fold * fold;
  conv.filters = w.shape[0];
  conv.kernel = w.shape[2] / fold;
  conv.stride = stride / fold;
  conv.relu = relu;
  conv.weight = static_cast<const float*>(w.data);
  if (folds) {
    const auto parts = py::cast<py::tuple>(statistics);
    const std::int64_t height = x.shape[2], width = x.shape[3];
    conv.frames = static_cast<const std::uint8_t*>(x.data);
    conv.mean = static_cast<const float*>(sized(parts[0], kFloats, {height, width}, "mean"));
    conv.scale = static_cast<const float*>(sized(parts[1], kFloats, {height, width}, "scale"));
    conv.limit = parts[2].cast<float>();
  } else {
    conv.images = static_cast<const Element*>(x.data);
  }
  const bool whole = !folds || (x.shape[2] % 4 == 0 && x.shape[3] % 4 == 0 && stride == 4);
  sized(weight, kFloats,
        {conv.filters, conv.channels / (fold * fold), fold * conv.kernel, fold * conv.kernel},
        "weight");
  if (!whole || !fits(conv)) {
    raise_value(
        kFunction, "input", "be tiled by kernel and stride, filters by 16 up to 64",
        shape_text(x) + " with weight " + shape_text(w) + " and stride " + std::to_string(stride));
  }
  return conv;
}

template <class Element>
Element* output_of(const frames::Convolution<Element>& conv, py::handle object,
                   const char* argument) {
  return static_cast<Element*>(
      sized(object, kImages<Element>,
            {conv.batch, conv.out_height(), conv.out_width(), conv.filters}, argument));
}

// Those of the instruction set that the losses run with; the native bfloat16 comes with avx512.
template <class Element>
const frames::Kernels<Element>* available();
template <>
const frames::Kernels<float>* available<float>() {
  return frames::float_kernels(cpu_isa());
}
template <>
const frames::Kernels<std::uint16_t>* available<std::uint16_t>() {
  const bool asked = std::strcmp(cpu_isa(), "avx512") == 0;
  return asked ? frames::bfloat16_kernels() : nullptr;
}

bool has_convolutions(bool bfloat16) {
  return bfloat16 ? available<std::uint16_t>() != nullptr : available<float>() != nullptr;
}

template <class Element>
const frames::Kernels<Element>& required() {
  const frames::Kernels<Element>* kernels = available<Element>();
  if (kernels != nullptr) return *kernels;
  raise_value(kFunction, "dtype", "be one that this CPU has convolutions for",
              kImages<Element>.name);
}

template <class Element>
void convolve_in(py::handle input, py::handle statistics, py::handle weight, py::handle bias,
                 std::int64_t stride, bool relu, py::handle output) {
  const frames::Kernels<Element>& kernels = required<Element>();
  const frames::Convolution<Element> conv = read<Element>(input, statistics, weight, stride, relu);
  const auto* offsets = static_cast<const float*>(sized(bias, kFloats, {conv.filters}, "bias"));
  Element* out = output_of(conv, output, "output");
  const py::gil_scoped_release release;
  frames::convolve(kernels, conv, offsets, out);
}

// The output's type says in which the products are.
void convolve(py::handle input, py::handle statistics, py::handle weight, py::handle bias,
              std::int64_t stride, bool relu, py::handle output) {
  const bool in_float = has_type(view_of(output, {kFunction, "output"}), kFloats);
  (in_float ? convolve_in<float> : convolve_in<std::uint16_t>)(input, statistics, weight, bias,
                                                               stride, relu, output);
}

template <class Element>
void backward_in(py::handle input, py::handle statistics, py::handle weight, std::int64_t stride,
                 py::handle output, py::handle grad_output, py::handle grad_input,
                 py::handle grad_weight, py::handle grad_bias) {
  const frames::Kernels<Element>& kernels = required<Element>();
  const bool relu = !output.is_none();
  const frames::Convolution<Element> conv = read<Element>(input, statistics, weight, stride, relu);
  frames::ConvolutionGradient<Element> gradient;
  gradient.grad_output = output_of(conv, grad_output, "grad_output");
  if (relu) gradient.output = output_of(conv, output, "output");
  if (!grad_input.is_none()) {
    if (conv.frames != nullptr) {
      raise_value(kFunction, "grad_input", "be None for frames", "a tensor");
    }
    gradient.grad_images = static_cast<Element*>(
        sized(grad_input, kImages<Element>, {conv.batch, conv.height, conv.width, conv.channels},
              "grad_input"));
  }
  const dlpack::Tensor w = dense(weight, kFloats, 4, "weight");
  gradient.grad_weight = static_cast<float*>(
      sized(grad_weight, kFloats, {w.shape[0], w.shape[1], w.shape[2], w.shape[3]}, "grad_weight"));
  gradient.grad_bias = static_cast<float*>(sized(grad_bias, kFloats, {conv.filters}, "grad_bias"));
  const py::gil_scoped_release release;
  frames::convolve_backward(kernels, conv, gradient);
}

void convolve_backward(py::handle input, py::handle statistics, py::handle weight,
                       std::int64_t stride, py::handle output, py::handle grad_output,
                       py::handle grad_input, py::handle grad_weight, py::handle grad_bias) {
  const bool in_float = has_type(view_of(grad_output, {kFunction, "grad_output"}), kFloats);
  (in_float ? backward_in<float> : backward_in<std::uint16_t>)(input, statistics, weight, stride,
                                                               output, grad_output, grad_input,
                                                               grad_weight, grad_bias);
}

}  // namespace

void register_frames(py::module_& m) {
  using py::arg;
  m.def("has_convolutions", &has_convolutions, arg("bfloat16"), py::pos_only(),
        "Whether this CPU can run convolve in float32, or in bfloat16, and is allowed to.");
  m.def("convolve", &convolve, arg("input"), arg("statistics"), arg("weight"), arg("bias"),
        arg("stride"), arg("relu"), arg("output"), py::pos_only(),
        "Convolution of images or of uint8 frames; see fastdistill.networks.convolutions.");
  m.def("convolve_backward", &convolve_backward, arg("input"), arg("statistics"), arg("weight"),
        arg("stride"), arg("output"), arg("grad_output"), arg("grad_input"), arg("grad_weight"),
        arg("grad_bias"), py::pos_only(), "Its gradients, written into the last three arguments.");
}

}  // namespace fastdistill
