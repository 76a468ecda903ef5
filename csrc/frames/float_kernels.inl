// SPDX-License-Identifier: MIT
// The convolutions' inner loops in float32, for vectors of FASTDISTILL_VECTOR_BYTES. This file is
// compiled once per instruction set, with FASTDISTILL_ISA naming the build; dispatch.cpp picks one
// at run time. Tiles of the result stay in registers; one operand is read a vector at a time, the
// other broadcast. No header with shared inline functions is included: the build flags are the
// including file's own.
#include <immintrin.h>
#include <stdint.h>

#include "frames/kernels.h"

namespace fastdistill::frames::FASTDISTILL_ISA {
namespace {

constexpr int64_t kLanes = FASTDISTILL_VECTOR_BYTES / 4;
constexpr int64_t kGroupVectors = kFilterGroup / kLanes;

using V = float __attribute__((vector_size(kLanes * 4)));
using VUnaligned = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using Eight = float __attribute__((vector_size(32)));
using Quad = float __attribute__((vector_size(16)));
using QuadUnaligned = float __attribute__((vector_size(16), aligned(4), may_alias));

V load(const float* p) { return *reinterpret_cast<const VUnaligned*>(p); }
void store(float* p, V v) { *reinterpret_cast<VUnaligned*>(p) = v; }
V broadcast(float value) { return value - V{}; }

// kPixels pixels by kGroups groups of 16 filters.
template <int kGroups, int kPixels>
void product_tile(const Product<float>& args, int64_t group, int64_t first) {
  constexpr int64_t kVectors = kGroups * kGroupVectors;
  const float* input[kPixels];
  float* output[kPixels];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
    // Past the end the last pixel is computed again.
    const int64_t pixel = first + p < args.pixels ? first + p : args.pixels - 1;
    input[p] = args.input + args.in_offset[pixel];
    output[p] = args.output + args.out_offset[pixel] + group * kFilterGroup;
  }
  V sum[kPixels][kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const V start =
        args.bias != nullptr ? load(args.bias + group * kFilterGroup + v * kLanes) : V{};
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) sum[p][v] = start;
  }
  for (int64_t run = 0; run < args.window.runs; ++run) {
    const float* weight = args.weight + group * args.weight_group + run * args.weight_run;
    const int64_t begin = run * args.window.run_stride;
    const int64_t end = begin + args.window.run_length;
    for (int64_t i = begin; i < end; ++i) {
      V w[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        w[v] = load(weight + v / kGroupVectors * args.weight_group + v % kGroupVectors * kLanes);
      }
      weight += kFilterGroup;
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const V x = broadcast(input[p][i]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sum[p][v] = x * w[v] + sum[p][v];
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const V value = sum[p][v];
      // Not larger(value, 0): a NaN stays one.
      store(output[p] + v * kLanes, args.relu ? (value < 0.0f ? V{} : value) : value);
    }
  }
}

template <int kGroups, int kPixels>
void product_groups(const Product<float>& args, int64_t group) {
  for (int64_t p = 0; p < args.pixels; p += kPixels) product_tile<kGroups, kPixels>(args, group, p);
}

void product(const Product<float>& args) {
  const int64_t groups = args.filters / kFilterGroup;
  if constexpr (kLanes == 8) {
    // One group's weights fit the nearest cache, and the sums of six pixels the 16 registers.
    for (int64_t group = 0; group < groups; ++group) product_groups<1, 6>(args, group);
  } else if (groups == 1) {
    product_groups<1, 12>(args, 0);
  } else if (groups == 2) {
    product_groups<2, 8>(args, 0);
  } else if (groups == 3) {
    product_groups<3, 6>(args, 0);
  } else {
    product_groups<4, 6>(args, 0);
  }
}

// Sums over pixels [begin, end) for kTileFilters filters and kVectors vectors of the window, whose
// values there are at input + in_offset[pixel].
constexpr int64_t kTileFilters = kLanes == 8 ? 4 : 8;
struct WeightTile {
  const float* input;
  const float* gradient;
  float* result;
  int64_t begin;
  int64_t end;
  bool accumulate;
};

template <int kVectors>
void weight_tile(const WeightGradient<float>& args, const WeightTile& tile) {
  V sum[kTileFilters][kVectors] = {};
  for (int64_t p = tile.begin; p < tile.end; ++p) {
    const float* input = tile.input + args.in_offset[p];
    const float* gradient = tile.gradient + p * args.filters;
    V x[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) x[v] = load(input + v * kLanes);
#pragma GCC unroll 8
    for (int f = 0; f < kTileFilters; ++f) {
      const V g = broadcast(gradient[f]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[f][v] = g * x[v] + sum[f][v];
    }
  }
  const int64_t stride = args.window.runs * args.window.run_length;
#pragma GCC unroll 8
  for (int f = 0; f < kTileFilters; ++f) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* result = tile.result + f * stride + v * kLanes;
      store(result, tile.accumulate ? load(result) + sum[f][v] : sum[f][v]);
    }
  }
}

// Few enough pixels that what a tile reads is still in the nearest cache for the next one.
constexpr int64_t kBlockPixels = 64;

void weight_gradient(const WeightGradient<float>& args) {
  const Window& window = args.window;
  const int64_t vectors = window.run_length / kLanes;
  for (int64_t begin = 0; begin < args.pixels; begin += kBlockPixels) {
    const int64_t end = begin + kBlockPixels < args.pixels ? begin + kBlockPixels : args.pixels;
    for (int64_t run = 0; run < window.runs; ++run) {
      for (int64_t v = 0; v < vectors;) {
        const int64_t left = vectors - v;
        // Never three and then one, which would wait for its own sums.
        const int64_t wide = left == 4 ? 2 : left < 3 ? left : 3;
        for (int64_t f = 0; f < args.filters; f += kTileFilters) {
          const WeightTile tile{
              args.input + run * window.run_stride + v * kLanes,
              args.packed + f,
              args.grad_weight + (f * window.runs + run) * window.run_length + v * kLanes,
              begin,
              end,
              args.accumulate || begin > 0};
          if (wide == 3) {
            weight_tile<3>(args, tile);
          } else if (wide == 2) {
            weight_tile<2>(args, tile);
          } else {
            weight_tile<1>(args, tile);
          }
        }
        v += wide;
      }
    }
  }
}

void pack_gradient(const GradientPack<float>& args) {
  for (int64_t f = 0; f < args.filters; f += kLanes) {
    V sum{};
    for (int64_t p = 0; p < args.pixels; ++p) {
      V gradient = load(args.gradient + p * args.filters + f);
      if (args.output != nullptr) {
        gradient = load(args.output + p * args.filters + f) <= 0.0f ? V{} : gradient;
      }
      store(args.packed + p * args.filters + f, gradient);
      if (args.copy != nullptr) store(args.copy + args.copy_offset[p] + f, gradient);
      sum += gradient;
    }
    store(args.grad_bias + f, load(args.grad_bias + f) + sum);
  }
}

// __builtin_convertvector of GCC 12 would take bytes one by one.
template <int64_t lanes>
auto from_bytes(const uint8_t* p) {
  if constexpr (lanes == 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<Eight>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
  } else {
    return __builtin_shufflevector(from_bytes<8>(p), from_bytes<8>(p + 8), 0, 1, 2, 3, 4, 5, 6, 7,
                                   8, 9, 10, 11, 12, 13, 14, 15);
  }
}

// kLanes adjacent pixels of a plane.
V standardised(const uint8_t* frame, const float* mean, const float* scale, V limit) {
  const V scaled = (from_bytes<kLanes>(frame) - load(mean)) * load(scale);
  const V above = scaled < -limit ? -limit : scaled;
  return above > limit ? limit : above;
}

template <int64_t quad>
void store_quads(float* out, int64_t stride, V row) {
  *reinterpret_cast<QuadUnaligned*>(out) =
      __builtin_shufflevector(row, row, 4 * quad, 4 * quad + 1, 4 * quad + 2, 4 * quad + 3);
  if constexpr (4 * (quad + 1) < kLanes) store_quads<quad + 1>(out + stride, stride, row);
}

void fold_frames(const Fold& args, float* output) {
  constexpr int64_t kBlocks = kLanes / 4;
  const int64_t blocks = args.width / 4, planes = args.planes;
  const int64_t channels = kFilterGroup * planes;
  const V limit = broadcast(args.limit);
  for (int64_t y = 0; y < args.height; ++y) {
    const float* mean = args.mean + y * args.width;
    const float* scale = args.scale + y * args.width;
    for (int64_t plane = 0; plane < planes; ++plane) {
      const uint8_t* frame = args.frames + (plane * args.height + y) * args.width;
      float* out = output + y / 4 * blocks * channels + plane * kFilterGroup + y % 4 * 4;
      for (int64_t bx = 0; bx < blocks; bx += kBlocks) {
        const int64_t block = bx + kBlocks <= blocks ? bx : blocks - kBlocks;  // the last once more
        const int64_t x = 4 * block;
        store_quads<0>(out + block * channels, channels,
                       standardised(frame + x, mean + x, scale + x, limit));
      }
    }
  }
}

}  // namespace

extern const Kernels<float> kKernels;
const Kernels<float> kKernels{product, weight_gradient, pack_gradient, fold_frames};

}  // namespace fastdistill::frames::FASTDISTILL_ISA
