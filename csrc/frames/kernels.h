// SPDX-License-Identifier: MIT
// The inner loops of the convolutions, on one thread, for CPUs with AVX512-BF16. Images are
// [height][width][channels] of bfloat16, which are their bits (uint16_t), or of float.
#pragma once

#include <cstdint>

namespace fastdistill::frames {

// Filters come in groups of 16, and at most this many groups.
inline constexpr std::int64_t kFilterGroup = 16;
inline constexpr std::int64_t kMaxFilterGroups = 4;

// What one output pixel reads: `runs` stretches of `run_length` adjacent values, `run_stride`
// apart. A kernel row of a convolution is one run.
struct Window {
  std::int64_t runs;
  std::int64_t run_length;  // even
  std::int64_t run_stride;
};

// output[pixel][filter] = sum over the window of input * weight, + bias, rectified.
// Pixel p reads at input + in_offset[p] and writes at output + out_offset[p].
template <class Element>
struct Product {
  Window window;
  const Element* input;
  // [runs][run_length / 2][filters][2]; of float [runs][run_length][filters]
  const Element* weight;
  const float* bias;  // [filters] or null
  bool relu;
  Element* output;
  const std::int32_t* in_offset;
  const std::int32_t* out_offset;
  std::int64_t pixels;
  std::int64_t filters;
};
void product(const Product<std::uint16_t>& args);
void product(const Product<float>& args);

// grad_weight[filter][run][i] = sum over pixels of gradient[pixel][filter] * window value.
struct WeightGradient {
  Window window;
  const std::uint16_t* input;
  const std::int32_t* in_offset;
  std::int64_t pixels;
  const std::uint16_t* pairs;  // [pixels / 2, rounded up][filters][2], zero where no pixel is
  std::int64_t filters;
  bool accumulate;  // += instead
  float* grad_weight;
};
void weight_gradient(const WeightGradient& args);

// Gradients of one pixel pair where the layer's output was positive (everywhere, if `output` is
// null), interleaved to `pairs` and copied to `first`, `second`; null for what is not wanted or not
// there. Their sum is added to `grad_bias`.
struct GradientPair {
  const std::uint16_t* gradient[2];
  const std::uint16_t* output[2];
  std::uint16_t* copy[2];
  std::uint16_t* pairs;
  float* grad_bias;
};
void pack_gradient(const GradientPair& args, std::int64_t filters);

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
void fold_frames(const Fold& args, std::uint16_t* output);
void fold_frames(const Fold& args, float* output);

}  // namespace fastdistill::frames
