// SPDX-License-Identifier: MIT
#include "frames/packing.h"

#include <algorithm>
#include <bit>

namespace fastdistill::frames {
namespace {

template <class Element>
Element rounded(float value);

template <>
float rounded<float>(float value) {
  return value;
}

// To bfloat16, to nearest, ties to even.
template <>
std::uint16_t rounded<std::uint16_t>(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return static_cast<std::uint16_t>((bits >> 16) | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Where Product reads the weight of a window's value `row` for the filter `column`.
template <class Element>
std::int64_t packed_place(std::int64_t row, std::int64_t column, std::int64_t rows,
                          std::int64_t columns) {
  if constexpr (sizeof(Element) == sizeof(std::uint16_t)) {
    return row / 2 * 2 * columns + 2 * column + row % 2;
  } else {
    return (column / kFilterGroup * rows + row) * kFilterGroup + column % kFilterGroup;
  }
}

// A batch has slices of this many images, but for the first limits: eight are wanted even of a
// small batch, and more than 64 nobody has threads for.
constexpr std::int64_t kSliceImages = 16;
constexpr std::int64_t kFewSlices = 8;
constexpr std::int64_t kManySlices = 64;

constexpr std::int64_t kGroupPixels = 256;
constexpr std::int64_t kGroupValues = std::int64_t{1} << 22;

}  // namespace

std::int64_t batch_slices(std::int64_t batch) {
  return std::min(batch, std::clamp(batch / kSliceImages, kFewSlices, kManySlices));
}

template <class Element>
std::int64_t padded_gradient_size(const Convolution<Element>& conv) {
  const std::int64_t pad = kPadsGradient<Element> ? conv.kernel / conv.stride - 1 : 0;
  return (conv.out_height() + 2 * pad) * (conv.out_width() + 2 * pad) * conv.filters;
}

template <class Element>
std::int64_t group_images(const Convolution<Element>& conv) {
  const std::int64_t image =
      std::max(conv.height * conv.width * conv.channels, padded_gradient_size(conv));
  const std::int64_t wanted = (kGroupPixels + conv.out_pixels() - 1) / conv.out_pixels();
  return std::clamp<std::int64_t>(kGroupValues / image, 1, wanted);
}

template <class Element>
Offsets weight_places(const Convolution<Element>& conv) {
  Offsets places(static_cast<std::size_t>(conv.window()));
  const std::int64_t k = conv.kernel;
  std::size_t at = 0;
  for (std::int64_t y = 0; y < k; ++y) {
    for (std::int64_t x = 0; x < k; ++x) {
      for (std::int64_t c = 0; c < conv.channels; ++c) {
        const std::int64_t plane = c / 16, dy = c / 4 % 4, dx = c % 4;
        const std::int64_t place = conv.frames == nullptr
                                       ? (c * k + y) * k + x
                                       : (plane * 4 * k + 4 * y + dy) * 4 * k + 4 * x + dx;
        places[at++] = static_cast<std::int32_t>(place);
      }
    }
  }
  return places;
}

template <class Element>
void pack_weight(const Convolution<Element>& conv, const Offsets& places, Element* packed) {
  const std::int64_t window = conv.window();
  for (std::int64_t i = 0; i < window; ++i) {
    const float* weight = conv.weight + places[static_cast<std::size_t>(i)];
    for (std::int64_t f = 0; f < conv.filters; ++f) {
      packed[packed_place<Element>(i, f, window, conv.filters)] =
          rounded<Element>(weight[f * window]);
    }
  }
}

template <class Element>
Offsets input_offsets(const Convolution<Element>& conv, std::int64_t images) {
  Offsets offsets;
  for (std::int64_t image = 0; image < images; ++image) {
    for (std::int64_t y = 0; y < conv.out_height(); ++y) {
      for (std::int64_t x = 0; x < conv.out_width(); ++x) {
        const std::int64_t row = image * conv.height + y * conv.stride;
        offsets.push_back(
            static_cast<std::int32_t>((row * conv.width + x * conv.stride) * conv.channels));
      }
    }
  }
  return offsets;
}

template <class Element>
InputGradient<Element>::InputGradient(const Convolution<Element>& conv, const Offsets& places,
                                      std::int64_t group)
    : conv_(conv),
      taps_(conv.kernel / conv.stride),
      pad_(kPads ? taps_ - 1 : 0),
      height_(conv.out_height() + 2 * pad_),
      width_(conv.out_width() + 2 * pad_),
      phase_weights_(taps_ * taps_ * conv.filters * conv.channels),
      group_(group),
      weight_(conv.stride * conv.stride * phase_weights_) {
  for (std::int64_t phase = 0; phase < conv.stride * conv.stride; ++phase) {
    pack_phase(places, phase / conv.stride, phase % conv.stride,
               weight_.get() + phase * phase_weights_);
    add_parts(phase / conv.stride, phase % conv.stride, group);
  }
  for (std::int64_t image = 0; image < group; ++image) {
    for (std::int64_t y = pad_; y < pad_ + conv.out_height(); ++y) {
      for (std::int64_t x = pad_; x < pad_ + conv.out_width(); ++x) {
        padded_offset_.push_back(
            static_cast<std::int32_t>(image * padded_size() + (y * width_ + x) * conv.filters));
      }
    }
  }
}

template <class Element>
void InputGradient<Element>::run(const Kernels<Element>& kernels, const Element* gradient,
                                 std::int64_t images, Element* grad_images) const {
  for (const Part& part : parts_) {
    const std::int64_t first = (part.rows.begin * taps_ + part.columns.begin) * conv_.filters;
    const std::int64_t run_length = (part.columns.end - part.columns.begin) * conv_.filters;
    const std::int64_t image_pixels = static_cast<std::int64_t>(part.from.size()) / group_;
    kernels.product(
        Product<Element>{{part.rows.end - part.rows.begin, run_length, width_ * conv_.filters},
                         gradient,
                         weight_.get() + part.phase * phase_weights_ + first * kFilterGroup,
                         taps_ * taps_ * conv_.filters * kFilterGroup,
                         taps_ * conv_.filters * kFilterGroup,
                         nullptr,
                         false,
                         grad_images,
                         part.from.data(),
                         part.to.data(),
                         images * image_pixels,
                         conv_.channels});
  }
}

template <class Element>
typename InputGradient<Element>::Taps InputGradient<Element>::taps_inside(
    std::int64_t index, std::int64_t out_extent) const {
  if (kPads) return {0, taps_};
  return {std::max<std::int64_t>(taps_ - 1 - index, 0),
          std::min(taps_, out_extent + taps_ - 1 - index)};
}

template <class Element>
void InputGradient<Element>::pack_phase(const Offsets& places, std::int64_t py, std::int64_t px,
                                        Element* out) {
  const std::int64_t rows = taps_ * taps_ * conv_.filters;
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t tap = row / conv_.filters, f = row % conv_.filters;
    const std::int64_t ky = conv_.stride * (taps_ - 1 - tap / taps_) + py;
    const std::int64_t kx = conv_.stride * (taps_ - 1 - tap % taps_) + px;
    const std::int32_t* place = places.data() + (ky * conv_.kernel + kx) * conv_.channels;
    const float* weight = conv_.weight + f * conv_.window();
    for (std::int64_t c = 0; c < conv_.channels; ++c) {
      out[packed_place<Element>(row, c, rows, conv_.channels)] = rounded<Element>(weight[place[c]]);
    }
  }
}

template <class Element>
void InputGradient<Element>::add_parts(std::int64_t py, std::int64_t px, std::int64_t group) {
  const std::int64_t outside = taps_ - 1 - pad_;  // how far before the first value a window begins
  for (std::int64_t image = 0; image < group; ++image) {
    for (std::int64_t y = py; y < conv_.height; y += conv_.stride) {
      for (std::int64_t x = px; x < conv_.width; x += conv_.stride) {
        const std::int64_t row = y / conv_.stride, column = x / conv_.stride;
        const Taps rows = taps_inside(row, conv_.out_height());
        const Taps columns = taps_inside(column, conv_.out_width());
        const std::int64_t from =
            (row + rows.begin - outside) * width_ + column + columns.begin - outside;
        const std::int64_t to = (image * conv_.height + y) * conv_.width + x;
        Part& part = part_of(py * conv_.stride + px, rows, columns);
        part.from.push_back(
            static_cast<std::int32_t>(image * padded_size() + from * conv_.filters));
        part.to.push_back(static_cast<std::int32_t>(to * conv_.channels));
      }
    }
  }
}

template <class Element>
typename InputGradient<Element>::Part& InputGradient<Element>::part_of(std::int64_t phase,
                                                                       Taps rows, Taps columns) {
  for (Part& part : parts_) {
    if (part.phase == phase && part.rows == rows && part.columns == columns) return part;
  }
  parts_.push_back({phase, rows, columns, {}, {}});
  return parts_.back();
}

template std::int64_t padded_gradient_size(const Convolution<std::uint16_t>&);
template std::int64_t padded_gradient_size(const Convolution<float>&);
template std::int64_t group_images(const Convolution<std::uint16_t>&);
template std::int64_t group_images(const Convolution<float>&);
template Offsets weight_places(const Convolution<std::uint16_t>&);
template Offsets weight_places(const Convolution<float>&);
template void pack_weight(const Convolution<std::uint16_t>&, const Offsets&, std::uint16_t*);
template void pack_weight(const Convolution<float>&, const Offsets&, float*);
template Offsets input_offsets(const Convolution<std::uint16_t>&, std::int64_t);
template Offsets input_offsets(const Convolution<float>&, std::int64_t);
template class InputGradient<std::uint16_t>;
template class InputGradient<float>;

}  // namespace fastdistill::frames
