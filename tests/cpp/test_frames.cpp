// SPDX-License-Identifier: MIT
// The convolutions on buffers of exactly the size they may touch, from several threads: their sums
// against a naive loop in double, and every access under the sanitizers. Each set of kernels that
// this CPU can run, and the float ones of 64-byte vectors also in AVX2's instructions.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "common/parallel.h"
#include "frames/convolution.h"

using namespace fastdistill;
using namespace fastdistill::frames;

namespace fastdistill::frames::wide {
extern const Kernels<float> kKernels;
}

namespace {

using Half = std::uint16_t;

float to_float(Half bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
float to_float(float value) { return value; }

// Only of values that bfloat16 has: others would bring rounding into the oracle.
void assign(Half& to, float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  CHECK_EQ(bits & 0xFFFFu, 0u);
  to = static_cast<Half>(bits >> 16);
}
void assign(float& to, float value) { to = value; }

// Multiples of 1/64 in [-1, 1): seven bits, so that every product is exact in float32.
float random_value(std::mt19937& random) {
  return static_cast<float>(static_cast<int>(random() % 128) - 64) / 64;
}

template <class Element>
std::vector<Element> random_values(std::int64_t count, std::mt19937& random) {
  std::vector<Element> values(static_cast<std::size_t>(count));
  for (Element& value : values) assign(value, random_value(random));
  return values;
}

int three_threads(std::int64_t begin, std::int64_t end, std::int64_t, ParallelBody body,
                  void* context) {
  std::vector<std::thread> threads;
  for (std::int64_t t = 0; t < 3; ++t) {
    const std::int64_t from = begin + (end - begin) * t / 3;
    const std::int64_t to = begin + (end - begin) * (t + 1) / 3;
    if (from < to) threads.emplace_back([=] { body(from, to, context); });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

// What the caller sees: planes of frames, or the channels of images, and the plain kernel size.
struct Case {
  bool of_frames;
  std::int64_t batch, height, width, channels, filters, kernel, stride;
  bool relu;
};

template <class Element>
struct World {
  Case c;
  Convolution<Element> conv;
  std::vector<Element> images;
  std::vector<std::uint8_t> frames;
  std::vector<float> mean, scale, weight, bias;
  std::vector<Element> output, grad_output, grad_images;
  std::vector<float> grad_weight, grad_bias;

  std::int64_t out_height() const { return (c.height - c.kernel) / c.stride + 1; }
  std::int64_t out_width() const { return (c.width - c.kernel) / c.stride + 1; }

  double input(std::int64_t image, std::int64_t y, std::int64_t x, std::int64_t channel) const {
    if (c.of_frames) {
      const std::int64_t at = ((image * c.channels + channel) * c.height + y) * c.width + x;
      const auto pixel = static_cast<std::size_t>(y * c.width + x);
      const float value = (frames[static_cast<std::size_t>(at)] - mean[pixel]) * scale[pixel];
      return std::clamp(value, -conv.limit, conv.limit);
    }
    const std::int64_t at = ((image * c.height + y) * c.width + x) * c.channels + channel;
    return to_float(images[static_cast<std::size_t>(at)]);
  }
  std::size_t weight_at(std::int64_t f, std::int64_t channel, std::int64_t ky,
                        std::int64_t kx) const {
    return static_cast<std::size_t>(((f * c.channels + channel) * c.kernel + ky) * c.kernel + kx);
  }
  std::size_t output_at(std::int64_t image, std::int64_t y, std::int64_t x, std::int64_t f) const {
    return static_cast<std::size_t>(((image * out_height() + y) * out_width() + x) * c.filters + f);
  }
};

template <class Element>
World<Element> make_world(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  World<Element> w{};
  w.c = c;
  if (c.of_frames) {
    w.frames.resize(static_cast<std::size_t>(c.batch * c.channels * c.height * c.width));
    for (auto& value : w.frames) value = static_cast<std::uint8_t>(random());
    w.mean.resize(static_cast<std::size_t>(c.height * c.width));
    w.scale.resize(w.mean.size());
    // Differences of at most 8 bits by powers of two: bfloat16 has them exactly.
    for (float& value : w.mean) value = static_cast<float>(random() % 2 * 128);
    for (float& value : w.scale) value = random() % 2 ? 1.0f / 64 : 1.0f / 128;
  } else {
    w.images = random_values<Element>(c.batch * c.height * c.width * c.channels, random);
  }
  w.weight.resize(static_cast<std::size_t>(c.filters * c.channels * c.kernel * c.kernel));
  for (float& value : w.weight) value = random_value(random);
  w.bias.resize(static_cast<std::size_t>(c.filters));
  for (float& value : w.bias) value = random_value(random);
  const std::int64_t outputs = c.batch * w.out_height() * w.out_width() * c.filters;
  w.output.resize(static_cast<std::size_t>(outputs));
  w.grad_output = random_values<Element>(outputs, random);
  w.grad_images.resize(w.images.size());
  w.grad_weight.resize(w.weight.size());
  w.grad_bias.resize(w.bias.size());

  const std::int64_t fold = c.of_frames ? 4 : 1;
  w.conv = {c.batch,
            c.height / fold,
            c.width / fold,
            c.channels * fold * fold,
            c.filters,
            c.kernel / fold,
            c.stride / fold,
            c.relu,
            w.images.data(),
            nullptr,
            nullptr,
            nullptr,
            1.5f,
            nullptr};
  if (c.of_frames) {
    w.conv.images = nullptr;
    w.conv.frames = w.frames.data();
    w.conv.mean = w.mean.data();
    w.conv.scale = w.scale.data();
  }
  w.conv.weight = w.weight.data();
  return w;
}

void check_near(double actual, double expected, double allowed, const char* what) {
  if (std::abs(actual - expected) <= allowed) return;
  std::printf("%s: got %.9g, expected %.9g, allowed %.3g\n", what, actual, expected, allowed);
  CHECK(false);
}

// Half a unit in the last place of bfloat16, and what float32 sums of some hundred terms may lose.
double rounding(Half, double expected) { return std::abs(expected) / 256 + 1e-3; }
// Nothing: every sum of these few bits fits float32's.
double rounding(float, double) { return 0; }

template <class Element>
void check_output(const World<Element>& w) {
  const Case& c = w.c;
  for (std::int64_t image = 0; image < c.batch; ++image) {
    for (std::int64_t y = 0; y < w.out_height(); ++y) {
      for (std::int64_t x = 0; x < w.out_width(); ++x) {
        for (std::int64_t f = 0; f < c.filters; ++f) {
          double sum = w.bias[static_cast<std::size_t>(f)];
          for (std::int64_t channel = 0; channel < c.channels; ++channel) {
            for (std::int64_t ky = 0; ky < c.kernel; ++ky) {
              for (std::int64_t kx = 0; kx < c.kernel; ++kx) {
                sum += w.weight[w.weight_at(f, channel, ky, kx)] *
                       w.input(image, y * c.stride + ky, x * c.stride + kx, channel);
              }
            }
          }
          if (c.relu) sum = std::max(sum, 0.0);
          const Element actual = w.output[w.output_at(image, y, x, f)];
          check_near(to_float(actual), sum, rounding(actual, sum), "output");
        }
      }
    }
  }
}

template <class Element>
void check_gradients(const World<Element>& w) {
  const Case& c = w.c;
  std::vector<double> grad_images(w.images.size()), grad_weight(w.weight.size());
  std::vector<double> grad_bias(w.bias.size());
  for (std::int64_t image = 0; image < c.batch; ++image) {
    for (std::int64_t y = 0; y < w.out_height(); ++y) {
      for (std::int64_t x = 0; x < w.out_width(); ++x) {
        for (std::int64_t f = 0; f < c.filters; ++f) {
          const std::size_t at = w.output_at(image, y, x, f);
          if (c.relu && !(to_float(w.output[at]) > 0)) continue;
          const double gradient = to_float(w.grad_output[at]);
          grad_bias[static_cast<std::size_t>(f)] += gradient;
          for (std::int64_t channel = 0; channel < c.channels; ++channel) {
            for (std::int64_t ky = 0; ky < c.kernel; ++ky) {
              for (std::int64_t kx = 0; kx < c.kernel; ++kx) {
                const std::int64_t iy = y * c.stride + ky, ix = x * c.stride + kx;
                const std::size_t place = w.weight_at(f, channel, ky, kx);
                grad_weight[place] += gradient * w.input(image, iy, ix, channel);
                if (c.of_frames) continue;
                const std::int64_t from = ((image * c.height + iy) * c.width + ix) * c.channels;
                grad_images[static_cast<std::size_t>(from + channel)] += gradient * w.weight[place];
              }
            }
          }
        }
      }
    }
  }
  for (std::size_t i = 0; i < grad_images.size(); ++i) {
    const Element actual = w.grad_images[i];
    check_near(to_float(actual), grad_images[i], rounding(actual, grad_images[i]), "grad_images");
  }
  const double allowed = sizeof(Element) == sizeof(Half) ? 1e-2 : 0;
  for (std::size_t i = 0; i < grad_weight.size(); ++i) {
    check_near(w.grad_weight[i], grad_weight[i], allowed, "grad_weight");
  }
  for (std::size_t i = 0; i < grad_bias.size(); ++i) {
    check_near(w.grad_bias[i], grad_bias[i], allowed, "grad_bias");
  }
}

template <class Element>
void run(const Kernels<Element>& kernels, const Case& c, unsigned seed) {
  World<Element> w = make_world<Element>(c, seed);
  convolve(kernels, w.conv, w.bias.data(), w.output.data());
  check_output(w);
  convolve_backward(
      kernels, w.conv,
      {w.grad_output.data(), c.relu ? w.output.data() : nullptr,
       c.of_frames ? nullptr : w.grad_images.data(), w.grad_weight.data(), w.grad_bias.data()});
  check_gradients(w);
}

constexpr Case kCases[] = {
    {true, 1, 36, 44, 1, 16, 8, 4, true},
    {true, 5, 40, 16, 3, 32, 8, 4, false},
    {true, 9, 36, 36, 4, 64, 8, 4, true},
    {false, 1, 20, 20, 16, 16, 4, 2, true},
    {false, 2, 9, 9, 16, 16, 3, 1, false},
    {false, 11, 9, 11, 32, 64, 3, 1, true},
    {false, 3, 12, 10, 32, 48, 4, 2, true},
    {false, 17, 5, 5, 64, 32, 2, 1, true},
    {false, 0, 9, 9, 16, 32, 3, 1, true},
    {true, 64, 36, 36, 1, 16, 8, 4, true},
    // Nine slices, of one or two images more than sixteen.
    {false, 147, 5, 6, 16, 16, 3, 1, true},
    {true, 151, 36, 16, 1, 16, 8, 4, true},
    // Whole groups of images in each of the eight slices of the batch, and a rest.
    {false, 37, 20, 20, 16, 16, 4, 2, true},
    {true, 38, 36, 36, 2, 16, 8, 4, true},
};

template <class Element>
void run_all(const char* name, const Kernels<Element>* kernels) {
  if (kernels == nullptr) {
    std::printf("not run: this CPU has no %s\n", name);
    return;
  }
  unsigned seed = 1;
  for (const bool threaded : {false, true}) {
    set_parallel_for(threaded ? three_threads : nullptr);
    for (const Case& c : kCases) run(*kernels, c, seed++);
  }
}

}  // namespace

int main() {
  run_all("AVX2", float_kernels("avx2"));
#if defined(__x86_64__)
  run_all("AVX2", float_kernels("avx2") != nullptr ? &wide::kKernels : nullptr);
#endif
  run_all("AVX-512", float_kernels("avx512"));
  run_all("AVX512-BF16", bfloat16_kernels());
  CHECK(float_kernels("baseline") == nullptr);
  return 0;
}
