// SPDX-License-Identifier: MIT
// Convolutions of small images in bfloat16 with float32 sums, or in float32, for the few input
// channels and filters of the networks that play Atari, where general libraries reach a third of
// the machine. The kernels (kernels.h) say in which type and with which instructions.
// No Python and no torch header may enter csrc/frames.
#pragma once

#include <cstdint>

#include "frames/kernels.h"

namespace fastdistill::frames {

// A convolution without padding: (height - kernel) and (width - kernel) are multiples of stride,
// kernel is one of stride, filters one of 16 and at most 64. Images are bfloat16 bits or floats,
// [batch][height][width][channels], channels likewise.
//
// With `frames`, the input is uint8 [batch][planes][4 * height][4 * width] instead, which is
// standardised and folded on the way (kernels.h: fold_frames); the caller's kernel of 4 * kernel
// and stride of 4 * stride is then the same convolution over channels = 16 * planes. stride is 1.
template <class Element>
struct Convolution {
  std::int64_t batch = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t channels = 0;
  std::int64_t filters = 0;
  std::int64_t kernel = 0;
  std::int64_t stride = 0;
  bool relu = false;
  const Element* images = nullptr;
  const std::uint8_t* frames = nullptr;
  const float* mean = nullptr;  // [4 * height][4 * width], with frames
  const float* scale = nullptr;
  float limit = 0;
  const float* weight = nullptr;  // [filters][channels][kernel][kernel], as the caller sees them

  std::int64_t out_height() const { return (height - kernel) / stride + 1; }
  std::int64_t out_width() const { return (width - kernel) / stride + 1; }
  std::int64_t out_pixels() const { return out_height() * out_width(); }
  std::int64_t window() const { return kernel * kernel * channels; }
};

// output: [batch][out_height][out_width][filters]. Element is std::uint16_t or float.
template <class Element>
void convolve(const Kernels<Element>& kernels, const Convolution<Element>& conv, const float* bias,
              Element* output);

// Gradients of the same call; the result does not depend on the number of threads.
template <class Element>
struct ConvolutionGradient {
  const Element* grad_output = nullptr;  // as output
  const Element* output = nullptr;       // with relu: what convolve wrote
  Element* grad_images = nullptr;        // as images; null = not wanted
  float* grad_weight = nullptr;          // as weight
  float* grad_bias = nullptr;
};
template <class Element>
void convolve_backward(const Kernels<Element>& kernels, const Convolution<Element>& conv,
                       const ConvolutionGradient<Element>& gradient);

}  // namespace fastdistill::frames
