// SPDX-License-Identifier: MIT
// The inner loops of the convolutions, on one thread, one table of them per instruction set.
// Images are [height][width][channels] of bfloat16, which are their bits (uint16_t), or of float.
#pragma once

#include <cstdint>

namespace fastdistill::frames {

// Channels and filters come in groups of 16, and at most this many groups.
inline constexpr std::int64_t kFilterGroup = 16;
inline constexpr std::int64_t kMaxFilterGroups = 4;

// What one output pixel reads: `runs` stretches of `run_length` adjacent values, `run_stride`
// apart. A kernel row of a convolution is one run.
struct Window {
  std::int64_t runs;
  std::int64_t run_length;  // a multiple of 16
  std::int64_t run_stride;
};

// output[pixel][filter] = sum over the window of input * weight, + bias, rectified.
// Pixel p reads at input + in_offset[p] and writes at output + out_offset[p].
template <class Element>
struct Product {
  Window window;
  const Element* input;
  // [runs][run_length / 2][filters][2]; of float [filters / 16][runs][run_length][16], where the
  // window may be a part of a larger one: the next two are its strides.
  const Element* weight;
  std::int64_t weight_group;
  std::int64_t weight_run;
  const float* bias;  // [filters] or null
  bool relu;
  Element* output;
  const std::int32_t* in_offset;
  const std::int32_t* out_offset;
  std::int64_t pixels;
  std::int64_t filters;
};

// grad_weight[filter][run][i] = sum over pixels of gradient[pixel][filter] * window value.
template <class Element>
struct WeightGradient {
  Window window;
  const Element* input;
  const std::int32_t* in_offset;
  std::int64_t pixels;
  const Element* packed;  // what pack_gradient made of the gradient
  std::int64_t filters;
  bool accumulate;  // += instead
  float* grad_weight;
};

// The gradient of some pixels where the layer's output was positive (everywhere, if `output` is
// null): `packed` for weight_gradient, and pixel p once more at copy + copy_offset[p], if `copy` is
// not null. Its sum is added to `grad_bias`.
template <class Element>
struct GradientPack {
  const Element* gradient;  // [pixels][filters]
  const Element* output;
  std::int64_t pixels;
  std::int64_t filters;
  Element* packed;  // as gradient; of bfloat16 [pixels / 2, rounded up][filters][2]
  Element* copy;
  const std::int32_t* copy_offset;
  float* grad_bias;
};

// Standardises uint8 planes, clip((frame - mean) * scale, -limit, limit), and folds every 4 x 4
// block of all planes into the channels of one pixel: [height / 4][width / 4][planes][4][4].
// Height and width are multiples of 4, the width at least 16.
struct Fold {
  const std::uint8_t* frames;  // [planes][height][width]
  const float* mean;           // [height][width]
  const float* scale;
  float limit;
  std::int64_t planes;
  std::int64_t height;
  std::int64_t width;
};

template <class Element>
struct Kernels {
  void (*product)(const Product<Element>&);
  void (*weight_gradient)(const WeightGradient<Element>&);
  void (*pack_gradient)(const GradientPack<Element>&);
  void (*fold_frames)(const Fold&, Element*);
};

// Null where this CPU lacks AVX512-BF16.
const Kernels<std::uint16_t>* bfloat16_kernels();

// Of "avx2" or "avx512"; null for other names and where this CPU lacks the instructions.
const Kernels<float>* float_kernels(const char* isa);

}  // namespace fastdistill::frames
