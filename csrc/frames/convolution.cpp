// SPDX-License-Identifier: MIT
// Geometry, scratch memory and threads of the convolutions; the arithmetic is in the kernels.
#include "frames/convolution.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "common/parallel.h"

namespace fastdistill::frames {
namespace {

using Offsets = std::vector<std::int32_t>;

// Weight gradients are summed per slice of the batch and then over the slices, always in the same
// order: that makes them independent of the number of threads.
constexpr std::int64_t kSlices = 8;

// Images handled at once: enough pixels to make reading and writing the sums cheap.
constexpr std::int64_t kGroupPixels = 256;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class Element>
std::int64_t group_images(const Convolution<Element>& conv) {
  return ceil_div(kGroupPixels, conv.out_pixels());
}

// Round to nearest, ties to even.
std::uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return static_cast<std::uint16_t>((bits >> 16) | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

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

template <class Body>
void for_ranges(std::int64_t count, const Body& body) {
  parallel_for(
      count,
      [](std::int64_t begin, std::int64_t end, void* context) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<Body*>(&body));
}

template <class Element>
Window window_of(const Convolution<Element>& conv) {
  return {conv.kernel, conv.kernel * conv.channels, conv.width * conv.channels};
}

// Where in a filter's weights the window's value [ky][kx][channel] is.
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

// [window / 2][filters][2] from [filters][places].
void pack_weight(const Convolution<std::uint16_t>& conv, const Offsets& places,
                 std::uint16_t* packed) {
  const std::int64_t window = conv.window();
  for_ranges(window / 2, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t pair = begin; pair < end; ++pair) {
      const std::int32_t* place = places.data() + 2 * pair;
      std::uint16_t* out = packed + 2 * pair * conv.filters;
      for (std::int64_t f = 0; f < conv.filters; ++f) {
        const float* weight = conv.weight + f * window;
        out[2 * f] = to_bfloat16(weight[place[0]]);
        out[2 * f + 1] = to_bfloat16(weight[place[1]]);
      }
    }
  });
}

// [window][filters] from [filters][places].
void pack_weight(const Convolution<float>& conv, const Offsets& places, float* packed) {
  const std::int64_t window = conv.window();
  for_ranges(window, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t f = 0; f < conv.filters; ++f) {
        packed[i * conv.filters + f] =
            conv.weight[f * window + places[static_cast<std::size_t>(i)]];
      }
    }
  });
}

// Start of each output pixel's window, for a group of images.
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

// The images [first, first + count): the caller's, or its frames folded into scratch.
template <class Element>
const Element* images_at(const Convolution<Element>& conv, std::int64_t first, std::int64_t count,
                         Element* scratch) {
  const std::int64_t size = conv.height * conv.width * conv.channels;
  if (conv.frames == nullptr) return conv.images + first * size;
  for (std::int64_t image = 0; image < count; ++image) {
    fold_frames({conv.frames + (first + image) * size, conv.mean, conv.scale, conv.limit,
                 conv.channels / 16, 4 * conv.height, 4 * conv.width},
                scratch + image * size);
  }
  return scratch;
}

template <class Element>
std::int64_t scratch_images(const Convolution<Element>& conv, std::int64_t group) {
  return conv.frames == nullptr ? 0 : group * conv.height * conv.width * conv.channels;
}

// The gradient of the input is, for each of stride * stride phases of its pixels, a convolution of
// the padded gradient of the output with every stride-th weight.
class InputGradient {
 public:
  InputGradient(const Convolution<std::uint16_t>& conv, const Offsets& places, std::int64_t group)
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
  }

  // Values in the padded gradient of one image.
  std::int64_t padded_size() const { return height_ * width_ * conv_.filters; }

  // Where an output pixel of the group lies in it.
  std::int64_t padded_offset(std::int64_t pixel) const {
    const std::int64_t image = pixel / conv_.out_pixels(), inside = pixel % conv_.out_pixels();
    const std::int64_t y = inside / conv_.out_width() + taps_ - 1;
    const std::int64_t x = inside % conv_.out_width() + taps_ - 1;
    return image * padded_size() + (y * width_ + x) * conv_.filters;
  }

  void run(const std::uint16_t* padded, std::int64_t images, std::uint16_t* grad_images) const {
    const std::int64_t phases = conv_.stride * conv_.stride;
    for (std::int64_t phase = 0; phase < phases; ++phase) {
      const auto at = static_cast<std::size_t>(phase);
      product(Product<std::uint16_t>{
          {taps_, taps_ * conv_.filters, width_ * conv_.filters},
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

 private:
  void pack_phase(const Offsets& places, std::int64_t py, std::int64_t px, std::uint16_t* out) {
    for (std::int64_t ty = 0; ty < taps_; ++ty) {
      for (std::int64_t tx = 0; tx < taps_; ++tx) {
        const std::int64_t ky = conv_.stride * (taps_ - 1 - ty) + py;
        const std::int64_t kx = conv_.stride * (taps_ - 1 - tx) + px;
        const std::int32_t* place = places.data() + (ky * conv_.kernel + kx) * conv_.channels;
        for (std::int64_t f = 0; f < conv_.filters; ++f) {
          const float* weight = conv_.weight + f * conv_.window();
          std::uint16_t* pairs = out + f / 2 * 2 * conv_.channels + f % 2;
          for (std::int64_t c = 0; c < conv_.channels; ++c) {
            pairs[2 * c] = to_bfloat16(weight[place[c]]);
          }
        }
        out += conv_.filters * conv_.channels;
      }
    }
  }

  void add_offsets(std::int64_t py, std::int64_t px, std::int64_t group) {
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

  const Convolution<std::uint16_t>& conv_;
  std::int64_t taps_;
  std::int64_t height_;
  std::int64_t width_;
  std::int64_t phase_weights_;
  Buffer<std::uint16_t> weight_;
  std::vector<Offsets> from_;
  std::vector<Offsets> to_;
};

// One slice's share of the batch.
struct Slice {
  std::int64_t begin;
  std::int64_t end;
  float* grad_weight;  // [filters][window]
  float* grad_bias;
};

void slice_backward(const Convolution<std::uint16_t>& conv, const ConvolutionGradient& gradient,
                    const Offsets& in_offset, const InputGradient* input_gradient,
                    const Slice& slice) {
  const std::int64_t group = group_images(conv), pixels = conv.out_pixels();
  const std::int64_t filters = conv.filters;
  Buffer<std::uint16_t> folded(scratch_images(conv, group));
  Buffer<std::uint16_t> pairs((group * pixels + 1) * filters);
  const std::int64_t padded_size = input_gradient ? group * input_gradient->padded_size() : 0;
  Buffer<std::uint16_t> padded(padded_size);
  std::fill_n(padded.get(), padded_size, std::uint16_t{0});
  std::fill_n(slice.grad_bias, filters, 0.0f);
  for (std::int64_t first = slice.begin; first < slice.end; first += group) {
    const std::int64_t count = std::min(group, slice.end - first);
    for (std::int64_t p = 0; p < count * pixels; p += 2) {
      GradientPair pair{};
      for (std::int64_t k = 0; k < 2 && p + k < count * pixels; ++k) {
        const std::int64_t at = (first * pixels + p + k) * filters;
        pair.gradient[k] = gradient.grad_output + at;
        pair.output[k] = conv.relu ? gradient.output + at : nullptr;
        if (input_gradient) pair.copy[k] = padded.get() + input_gradient->padded_offset(p + k);
      }
      pair.pairs = pairs.get() + p * filters;
      pair.grad_bias = slice.grad_bias;
      pack_gradient(pair, filters);
    }
    const std::uint16_t* images = images_at(conv, first, count, folded.get());
    weight_gradient({window_of(conv), images, in_offset.data(), count * pixels, pairs.get(),
                     filters, first > slice.begin, slice.grad_weight});
    if (input_gradient) {
      const std::int64_t size = conv.height * conv.width * conv.channels;
      input_gradient->run(padded.get(), count, gradient.grad_images + first * size);
    }
  }
}

}  // namespace

bool supported() {
#if defined(FASTDISTILL_AVX512BF16)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

template <class Element>
void convolve(const Convolution<Element>& conv, const float* bias, Element* output) {
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
      product(Product<Element>{window_of(conv), images_at(conv, first, count, folded.get()),
                               weight.get(), bias, conv.relu,
                               output + first * conv.out_pixels() * conv.filters, in_offset.data(),
                               out_offset.data(), count * conv.out_pixels(), conv.filters});
    }
  });
}

template void convolve(const Convolution<std::uint16_t>&, const float*, std::uint16_t*);
template void convolve(const Convolution<float>&, const float*, float*);

void convolve_backward(const Convolution<std::uint16_t>& conv,
                       const ConvolutionGradient& gradient) {
  const std::int64_t window = conv.window(), filters = conv.filters;
  const std::int64_t slices = std::min(kSlices, conv.batch);
  const std::int64_t size = filters * (window + 1);
  Buffer<float> sums(slices * size);
  const Offsets places = weight_places(conv);
  const Offsets in_offset = input_offsets(conv, group_images(conv));
  std::unique_ptr<InputGradient> input_gradient;
  if (gradient.grad_images != nullptr) {
    input_gradient = std::make_unique<InputGradient>(conv, places, group_images(conv));
  }
  for_ranges(slices, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s) {
      float* sum = sums.get() + s * size;
      slice_backward(
          conv, gradient, in_offset, input_gradient.get(),
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

}  // namespace fastdistill::frames
