// SPDX-License-Identifier: MIT
// Groups of images, scratch memory and threads of the convolutions; the arithmetic is in the
// kernels.
#include "frames/convolution.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "frames/packing.h"

namespace fastdistill::frames {
namespace {

template <class Body>
void for_ranges(std::int64_t count, const Body& body) {
  parallel_for(
      count,
      [](std::int64_t begin, std::int64_t end, void* context) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<Body*>(&body));
}

// The images [first, first + count): the caller's, or its frames folded into scratch.
template <class Element>
const Element* images_at(const Kernels<Element>& kernels, const Convolution<Element>& conv,
                         std::int64_t first, std::int64_t count, Element* scratch) {
  const std::int64_t size = conv.height * conv.width * conv.channels;
  if (conv.frames == nullptr) return conv.images + first * size;
  for (std::int64_t image = 0; image < count; ++image) {
    kernels.fold_frames({conv.frames + (first + image) * size, conv.mean, conv.scale, conv.limit,
                         conv.channels / 16, 4 * conv.height, 4 * conv.width},
                        scratch + image * size);
  }
  return scratch;
}

template <class Element>
std::int64_t scratch_images(const Convolution<Element>& conv, std::int64_t group) {
  return conv.frames == nullptr ? 0 : group * conv.height * conv.width * conv.channels;
}

// One slice's share of the batch.
struct Slice {
  std::int64_t begin;
  std::int64_t end;
  float* grad_weight;  // [filters][window]
  float* grad_bias;
};

template <class Element>
void slice_backward(const Kernels<Element>& kernels, const Convolution<Element>& conv,
                    const ConvolutionGradient<Element>& gradient, const Offsets& in_offset,
                    const InputGradient<Element>* input_gradient, const Slice& slice) {
  const std::int64_t group = group_images(conv), pixels = conv.out_pixels();
  const std::int64_t filters = conv.filters;
  Buffer<Element> folded(scratch_images(conv, group));
  Buffer<Element> packed((group * pixels + 1) * filters);
  const bool copies = input_gradient != nullptr && InputGradient<Element>::kPads;
  const std::int64_t padded_size = copies ? group * input_gradient->padded_size() : 0;
  Buffer<Element> padded(padded_size);
  std::fill_n(padded.get(), padded_size, Element{0});
  std::fill_n(slice.grad_bias, filters, 0.0f);
  for (std::int64_t first = slice.begin; first < slice.end; first += group) {
    const std::int64_t count = std::min(group, slice.end - first);
    const std::int64_t at = first * pixels * filters;
    kernels.pack_gradient({gradient.grad_output + at, conv.relu ? gradient.output + at : nullptr,
                           count * pixels, filters, packed.get(), copies ? padded.get() : nullptr,
                           copies ? input_gradient->padded_offset() : nullptr, slice.grad_bias});
    const Element* images = images_at(kernels, conv, first, count, folded.get());
    kernels.weight_gradient({window_of(conv), images, in_offset.data(), count * pixels,
                             packed.get(), filters, first > slice.begin, slice.grad_weight});
    if (input_gradient) {
      const std::int64_t size = conv.height * conv.width * conv.channels;
      input_gradient->run(kernels, copies ? padded.get() : packed.get(), count,
                          gradient.grad_images + first * size);
    }
  }
}

}  // namespace

template <class Element>
void convolve(const Kernels<Element>& kernels, const Convolution<Element>& conv, const float* bias,
              Element* output) {
  const std::int64_t group = group_images(conv);
  Buffer<Element> weight(conv.window() * conv.filters);
  pack_weight(conv, weight_places(conv), weight.get());
  const Offsets in_offset = input_offsets(conv, group);
  Offsets out_offset(in_offset.size());
  for (std::size_t p = 0; p < out_offset.size(); ++p) {
    out_offset[p] = static_cast<std::int32_t>(p) * static_cast<std::int32_t>(conv.filters);
  }
  for_ranges(conv.batch, [&](std::int64_t begin, std::int64_t end) {
    Buffer<Element> folded(scratch_images(conv, group));
    for (std::int64_t first = begin; first < end; first += group) {
      const std::int64_t count = std::min(group, end - first);
      kernels.product(Product<Element>{
          window_of(conv), images_at(kernels, conv, first, count, folded.get()), weight.get(),
          conv.window() * kFilterGroup, conv.kernel * conv.channels * kFilterGroup, bias, conv.relu,
          output + first * conv.out_pixels() * conv.filters, in_offset.data(), out_offset.data(),
          count * conv.out_pixels(), conv.filters});
    }
  });
}

template <class Element>
void convolve_backward(const Kernels<Element>& kernels, const Convolution<Element>& conv,
                       const ConvolutionGradient<Element>& gradient) {
  const std::int64_t window = conv.window(), filters = conv.filters;
  const std::int64_t slices = batch_slices(conv.batch);
  const std::int64_t size = filters * (window + 1);
  Buffer<float> sums(slices * size);
  const Offsets places = weight_places(conv);
  const Offsets in_offset = input_offsets(conv, group_images(conv));
  std::unique_ptr<InputGradient<Element>> input_gradient;
  if (gradient.grad_images != nullptr) {
    input_gradient = std::make_unique<InputGradient<Element>>(conv, places, group_images(conv));
  }
  for_ranges(slices, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      float* sum = sums.get() + s * size;
      slice_backward(
          kernels, conv, gradient, in_offset, input_gradient.get(),
          {s * conv.batch / slices, (s + 1) * conv.batch / slices, sum, sum + filters * window});
    }
  });
  for_ranges(filters, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> row(static_cast<std::size_t>(window));
    for (std::int64_t f = begin; f < end; ++f) {
      std::fill(row.begin(), row.end(), 0.0f);
      gradient.grad_bias[f] = 0;
      for (std::int64_t s = 0; s < slices; ++s) {
        const float* sum = sums.get() + s * size;
        for (std::int64_t i = 0; i < window; ++i) {
          row[static_cast<std::size_t>(i)] += sum[f * window + i];
        }
        gradient.grad_bias[f] += sum[filters * window + f];
      }
      for (std::size_t i = 0; i < row.size(); ++i) {
        gradient.grad_weight[f * window + places[i]] = row[i];
      }
    }
  });
}

template void convolve(const Kernels<std::uint16_t>&, const Convolution<std::uint16_t>&,
                       const float*, std::uint16_t*);
template void convolve(const Kernels<float>&, const Convolution<float>&, const float*, float*);
template void convolve_backward(const Kernels<std::uint16_t>&, const Convolution<std::uint16_t>&,
                                const ConvolutionGradient<std::uint16_t>&);
template void convolve_backward(const Kernels<float>&, const Convolution<float>&,
                                const ConvolutionGradient<float>&);

}  // namespace fastdistill::frames
