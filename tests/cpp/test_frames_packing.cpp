// SPDX-License-Identifier: MIT
// The sizes of the convolutions' scratch memory and the reach of its 32-bit offsets, over every
// geometry that the bindings let in: as arithmetic, since the largest would take gigabytes.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "frames/packing.h"

using namespace fastdistill::frames;

namespace {

constexpr std::int64_t kMaxOffset = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMaxImage = std::int64_t{1} << 22;  // frames_binding.cpp: fits

template <class Element>
void check_reach(const Convolution<Element>& conv) {
  const std::int64_t group = group_images(conv);
  const std::int64_t image = conv.height * conv.width * conv.channels;
  const std::int64_t padded = padded_gradient_size(conv);
  CHECK(group >= 1);
  CHECK(group * image <= kMaxOffset);
  CHECK(group * padded <= kMaxOffset);
  CHECK(group * conv.out_pixels() * conv.filters <= kMaxOffset);
  CHECK(group * std::max(image, padded) <= std::max({kMaxImage, image, padded}));
}

// Images as wide as the kernel and as long as may be, square ones, and some between.
template <class Element>
std::int64_t check_all_geometries() {
  std::int64_t checked = 0;
  for (std::int64_t channels = 16; channels <= 64; channels += 16) {
    for (std::int64_t kernel = 1; kernel * kernel * channels < kMaxImage; ++kernel) {
      for (std::int64_t stride = 1; stride <= kernel; ++stride) {
        if (kernel % stride != 0) continue;
        for (std::int64_t width = kernel; width * kernel * channels < kMaxImage;
             width += std::max(width - kernel, stride)) {
          const std::int64_t most = (kMaxImage - 1) / (width * channels) / stride * stride;
          for (const std::int64_t height : {kernel, (kernel + most) / 2 / stride * stride, most}) {
            if (height < kernel) continue;
            Convolution<Element> conv;
            conv.height = height, conv.width = width, conv.channels = channels;
            conv.kernel = kernel, conv.stride = stride, conv.filters = 64;
            check_reach(conv);
            ++checked;
          }
        }
      }
    }
  }
  return checked;
}

// Offsets of the padded gradient of several images, where a large kernel leaves room for few.
void check_padded_offsets() {
  constexpr std::int64_t kKernel = 96, kFilters = 16;
  std::vector<float> weight(static_cast<std::size_t>(kKernel * kKernel * 16 * kFilters));
  Convolution<std::uint16_t> conv;
  conv.height = kKernel, conv.width = kKernel + 1, conv.channels = 16;
  conv.kernel = kKernel, conv.stride = 1, conv.filters = kFilters;
  conv.weight = weight.data();
  const std::int64_t group = group_images(conv);
  const std::int64_t padded = (2 * kKernel - 1) * 2 * kKernel * kFilters;
  CHECK_EQ(padded_gradient_size(conv), padded);
  CHECK_EQ(group, kMaxImage / padded);
  CHECK(group < 128);  // the pixels alone would ask for as many
  const InputGradient<std::uint16_t> gradient(conv, weight_places(conv), group);
  for (std::int64_t pixel = 0; pixel < group * conv.out_pixels(); ++pixel) {
    const std::int64_t x = kKernel - 1 + pixel % 2;
    CHECK_EQ(gradient.padded_offset()[pixel],
             pixel / 2 * padded + ((kKernel - 1) * 2 * kKernel + x) * kFilters);
  }
}

}  // namespace

int main() {
  CHECK(check_all_geometries<std::uint16_t>() > 10'000);
  CHECK(check_all_geometries<float>() > 10'000);
  check_padded_offsets();
  // The networks' own second layer is read four images at a time.
  Convolution<float> conv;
  conv.height = conv.width = 20, conv.channels = 32, conv.kernel = 4, conv.stride = 2;
  conv.filters = 64;
  CHECK_EQ(group_images(conv), 4);
  const std::int64_t batches[] = {0, 1, 7, 8, 143, 144, 256, 10'000};
  const std::int64_t slices[] = {0, 1, 7, 8, 8, 9, 16, 64};
  for (std::size_t i = 0; i < 8; ++i) CHECK_EQ(batch_slices(batches[i]), slices[i]);
  return 0;
}
