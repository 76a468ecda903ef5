// SPDX-License-Identifier: MIT
#include "frames/packing.h"

#include <bit>
#include <utility>

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

}  // namespace

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
      height_(conv.out_height() + 2 * (taps_ - 1)),
      width_(conv.out_width() + 2 * (taps_ - 1)),
      phase_weights_(taps_ * taps_ * conv.filters * conv.channels),
      weight_(conv.stride * conv.stride * phase_weights_) {
  for (std::int64_t phase = 0; phase < conv.stride * conv.stride; ++phase) {
    pack_phase(places, phase / conv.stride, phase % conv.stride,
               weight_.get() + phase * phase_weights_);
    add_offsets(phase / conv.stride, phase % conv.stride, group);
  }
  for (std::int64_t image = 0; image < group; ++image) {
    for (std::int64_t y = taps_ - 1; y < taps_ - 1 + conv.out_height(); ++y) {
      for (std::int64_t x = taps_ - 1; x < taps_ - 1 + conv.out_width(); ++x) {
        padded_offset_.push_back(
            static_cast<std::int32_t>(image * padded_size() + (y * width_ + x) * conv.filters));
      }
    }
  }
}

template <class Element>
void InputGradient<Element>::run(const Kernels<Element>& kernels, const Element* padded,
                                 std::int64_t images, Element* grad_images) const {
  const std::int64_t phases = conv_.stride * conv_.stride;
  for (std::int64_t phase = 0; phase < phases; ++phase) {
    const auto at = static_cast<std::size_t>(phase);
    kernels.product({{taps_, taps_ * conv_.filters, width_ * conv_.filters},
                     padded,
                     weight_.get() + phase * phase_weights_,
                     nullptr,
                     false,
                     grad_images,
                     from_[at].data(),
                     to_[at].data(),
                     images * conv_.height / conv_.stride * (conv_.width / conv_.stride),
                     conv_.channels});
  }
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
void InputGradient<Element>::add_offsets(std::int64_t py, std::int64_t px, std::int64_t group) {
  Offsets from, to;
  for (std::int64_t image = 0; image < group; ++image) {
    for (std::int64_t y = py; y < conv_.height; y += conv_.stride) {
      for (std::int64_t x = px; x < conv_.width; x += conv_.stride) {
        const std::int64_t row = y / conv_.stride, column = x / conv_.stride;
        from.push_back(static_cast<std::int32_t>(image * padded_size() +
                                                 (row * width_ + column) * conv_.filters));
        to.push_back(static_cast<std::int32_t>(((image * conv_.height + y) * conv_.width + x) *
                                               conv_.channels));
      }
    }
  }
  from_.push_back(std::move(from));
  to_.push_back(std::move(to));
}

template Offsets weight_places(const Convolution<std::uint16_t>&);
template Offsets weight_places(const Convolution<float>&);
template void pack_weight(const Convolution<std::uint16_t>&, const Offsets&, std::uint16_t*);
template void pack_weight(const Convolution<float>&, const Offsets&, float*);
template Offsets input_offsets(const Convolution<std::uint16_t>&, std::int64_t);
template Offsets input_offsets(const Convolution<float>&, std::int64_t);
template class InputGradient<std::uint16_t>;
template class InputGradient<float>;

}  // namespace fastdistill::frames
