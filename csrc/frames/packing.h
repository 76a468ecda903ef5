// SPDX-License-Identifier: MIT
// How the convolutions' operands lie in memory: the places of pixels and weights, weights in the
// order in which the kernels read them, and the gradient of the input as a convolution of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "frames/convolution.h"

namespace fastdistill::frames {

using Offsets = std::vector<std::int32_t>;

// Whether InputGradient reads a gradient with zeros around it.
template <class Element>
inline constexpr bool kPadsGradient = sizeof(Element) == sizeof(std::uint16_t);

template <class Element>
class Buffer {
 public:
  explicit Buffer(std::int64_t count)
      : data_(static_cast<Element*>(::operator new(
            static_cast<std::size_t>(count) * sizeof(Element), std::align_val_t{64}))) {}
  Element* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(Element* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<Element, Free> data_;
};

// Weight gradients are summed per slice of the batch and then over the slices, always in the same
// order: that makes them independent of the number of threads, of which there is work for as many
// as there are slices. More slices are more sums to add up.
std::int64_t batch_slices(std::int64_t batch);

// Images handled at once: enough pixels to make reading and writing the sums cheap, few enough
// that whatever lies in memory for them is small and its offsets have 32 bits.
template <class Element>
std::int64_t group_images(const Convolution<Element>& conv);

// Values in the gradient of one image's output as InputGradient<Element> reads it.
template <class Element>
std::int64_t padded_gradient_size(const Convolution<Element>& conv);

template <class Element>
Window window_of(const Convolution<Element>& conv) {
  return {conv.kernel, conv.kernel * conv.channels, conv.width * conv.channels};
}

// Where in a filter's weights the window's value [ky][kx][channel] is.
template <class Element>
Offsets weight_places(const Convolution<Element>& conv);

// The weights as Product reads them.
template <class Element>
void pack_weight(const Convolution<Element>& conv, const Offsets& places, Element* packed);

// Start of each output pixel's window, for a group of images.
template <class Element>
Offsets input_offsets(const Convolution<Element>& conv, std::int64_t images);

// The gradient of the input is, for each of stride * stride phases of its pixels, a convolution of
// the gradient of the output with every stride-th weight, where the windows of pixels near an edge
// reach over it. In bfloat16 the gradient is padded with zeros there; in float32 the pixels are
// parted by what is left of their windows.
template <class Element>
class InputGradient {
 public:
  static constexpr bool kPads = kPadsGradient<Element>;

  // `conv` must outlive it. For up to `group` images at once.
  InputGradient(const Convolution<Element>& conv, const Offsets& places, std::int64_t group);

  std::int64_t padded_size() const { return padded_gradient_size(conv_); }

  // Where the output pixels of the group lie in it.
  const std::int32_t* padded_offset() const { return padded_offset_.data(); }

  // `gradient` is padded, or as pack_gradient packs it.
  void run(const Kernels<Element>& kernels, const Element* gradient, std::int64_t images,
           Element* grad_images) const;

 private:
  struct Taps {  // of a window along one axis
    std::int64_t begin;
    std::int64_t end;
    bool operator==(const Taps&) const = default;
  };
  struct Part {
    std::int64_t phase;
    Taps rows;
    Taps columns;
    Offsets from;
    Offsets to;
  };

  // Those of the window of the `index`th pixel of a phase that lie inside.
  Taps taps_inside(std::int64_t index, std::int64_t out_extent) const;
  void pack_phase(const Offsets& places, std::int64_t py, std::int64_t px, Element* out);
  void add_parts(std::int64_t py, std::int64_t px, std::int64_t group);
  Part& part_of(std::int64_t phase, Taps rows, Taps columns);

  const Convolution<Element>& conv_;
  std::int64_t taps_;
  std::int64_t pad_;
  std::int64_t height_;
  std::int64_t width_;
  std::int64_t phase_weights_;
  std::int64_t group_;
  Buffer<Element> weight_;
  Offsets padded_offset_;
  std::vector<Part> parts_;
};

}  // namespace fastdistill::frames
