// SPDX-License-Identifier: MIT
// Each product instruction multiplies 16 pairs of bfloat16 and adds them to 16 float32 sums. Tiles
// of the result stay in registers; one operand is read 16 pairs wide, the other broadcast a pair at
// a time. No header with shared inline functions is included: this file's build flags are its own.
#include <immintrin.h>
#include <stdint.h>

#include "frames/kernels.h"

namespace fastdistill::frames::avx512bf16 {
namespace {

__m512 multiply_pairs(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

__m512i broadcast_pair(const uint16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return _mm512_set1_epi32(pair);
}

__m256i to_bfloat16(__m512 values) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)); }

__m512 to_float(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

__m256i load_half(const uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

void store_half(uint16_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }

// kPixels x kGroups sums at once.
template <int kGroups, int kPixels>
void product_tile(const Product<uint16_t>& args, int64_t first) {
  const uint16_t* input[kPixels];
  uint16_t* output[kPixels];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
    // Past the end the last pixel is computed again.
    const int64_t pixel = first + p < args.pixels ? first + p : args.pixels - 1;
    input[p] = args.input + args.in_offset[pixel];
    output[p] = args.output + args.out_offset[pixel];
  }
  __m512 sum[kPixels][kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    const __m512 start =
        args.bias != nullptr ? _mm512_loadu_ps(args.bias + g * kFilterGroup) : _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) sum[p][g] = start;
  }
  const uint16_t* weight = args.weight;
  for (int64_t run = 0; run < args.window.runs; ++run) {
    const int64_t begin = run * args.window.run_stride;
    const int64_t end = begin + args.window.run_length;
    for (int64_t i = begin; i < end; i += 2) {
      __m512i w[kGroups];
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) w[g] = _mm512_loadu_si512(weight + kFilterGroup * 2 * g);
      weight += kFilterGroup * 2 * kGroups;
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const __m512i x = broadcast_pair(input[p] + i);
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) sum[p][g] = multiply_pairs(sum[p][g], x, w[g]);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      // With the value second, a NaN stays one.
      const __m512 value = args.relu ? _mm512_max_ps(_mm512_setzero_ps(), sum[p][g]) : sum[p][g];
      store_half(output[p] + g * kFilterGroup, to_bfloat16(value));
    }
  }
}

template <int kGroups, int kPixels>
void product_of(const Product<uint16_t>& args) {
  for (int64_t p = 0; p < args.pixels; p += kPixels) product_tile<kGroups, kPixels>(args, p);
}

void product(const Product<uint16_t>& args) {
  switch (args.filters / kFilterGroup) {
    case 1:
      return product_of<1, 12>(args);
    case 2:
      return product_of<2, 8>(args);
    case 3:
      return product_of<3, 6>(args);
    default:
      return product_of<4, 6>(args);
  }
}

// a[0], b[0], a[1], b[1]... of the lower and the upper half.
__m512i interleave_low(__m512i a, __m512i b) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_permutex2var_epi16(a, order, b);
}

__m512i interleave_high(__m512i a, __m512i b) {
  const __m512i order =
      _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24, 55, 23, 54,
                       22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
  return _mm512_permutex2var_epi16(a, order, b);
}

// The sums of 8 filters from `filter` on and of the run's 32 values from `first` on, or as many as
// it has.
void weight_tile(const WeightGradient<uint16_t>& args, int64_t run, int64_t first, int64_t filter) {
  constexpr int kFilters = 8;
  const Window& window = args.window;
  const int64_t left = window.run_length - first;
  const auto lanes = static_cast<__mmask32>(left >= 32 ? ~0u : (1u << left) - 1u);
  const auto low = static_cast<__mmask16>(lanes);
  const auto high = static_cast<__mmask16>(lanes >> 16);
  const int64_t stride = window.runs * window.run_length;
  float* result = args.grad_weight + filter * stride + run * window.run_length + first;
  const uint16_t* input = args.input + run * window.run_stride + first;
  const uint16_t* gradient = args.packed + 2 * filter;
  __m512 sum[kFilters][2];
#pragma GCC unroll 8
  for (int f = 0; f < kFilters; ++f) {
    const float* before = result + f * stride;
    sum[f][0] = args.accumulate ? _mm512_maskz_loadu_ps(low, before) : _mm512_setzero_ps();
    sum[f][1] = args.accumulate ? _mm512_maskz_loadu_ps(high, before + 16) : _mm512_setzero_ps();
  }
  for (int64_t p = 0; p < args.pixels; p += 2) {
    const int64_t second = p + 1 < args.pixels ? p + 1 : p;  // its gradient is 0
    const __m512i a = _mm512_maskz_loadu_epi16(lanes, input + args.in_offset[p]);
    const __m512i b = _mm512_maskz_loadu_epi16(lanes, input + args.in_offset[second]);
    const __m512i x0 = interleave_low(a, b);
    const __m512i x1 = interleave_high(a, b);
#pragma GCC unroll 8
    for (int f = 0; f < kFilters; ++f) {
      const __m512i g = broadcast_pair(gradient + int64_t{2} * f);
      sum[f][0] = multiply_pairs(sum[f][0], x0, g);
      sum[f][1] = multiply_pairs(sum[f][1], x1, g);
    }
    gradient += 2 * args.filters;
  }
#pragma GCC unroll 8
  for (int f = 0; f < kFilters; ++f) {
    _mm512_mask_storeu_ps(result + f * stride, low, sum[f][0]);
    _mm512_mask_storeu_ps(result + f * stride + 16, high, sum[f][1]);
  }
}

__m256i where_positive(__m256i gradient, const uint16_t* output, int64_t f) {
  if (output == nullptr) return gradient;
  const __mmask16 positive = _mm256_cmpgt_epi16_mask(load_half(output + f), _mm256_setzero_si256());
  return _mm256_maskz_mov_epi16(positive, gradient);
}

// Row y of all planes' standardised values: 16 pixels from x on.
__m512 standardised(const Fold& args, int64_t plane, int64_t y, int64_t x) {
  const int64_t pixel = y * args.width + x;
  const uint8_t* frame = args.frames + plane * args.height * args.width + pixel;
  const __m512 value = _mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(frame))));
  const __m512 scaled = _mm512_mul_ps(_mm512_sub_ps(value, _mm512_loadu_ps(args.mean + pixel)),
                                      _mm512_loadu_ps(args.scale + pixel));
  const __m512 limit = _mm512_set1_ps(args.limit);
  return _mm512_min_ps(limit, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), scaled));
}

// Two rows of 16 values as bfloat16, one after the other.
__m512i two_rows(const Fold& args, int64_t plane, int64_t y, int64_t x) {
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(standardised(args, plane, y + 1, x), standardised(args, plane, y, x)));
}

void weight_gradient(const WeightGradient<uint16_t>& args) {
  const Window& window = args.window;
  for (int64_t run = 0; run < window.runs; ++run) {
    for (int64_t i = 0; i < window.run_length; i += 32) {
      for (int64_t f = 0; f < args.filters; f += 8) weight_tile(args, run, i, f);
    }
  }
}

// Two adjacent pixels; a null gradient stands for none, a null copy for one that is not wanted.
struct GradientPair {
  const uint16_t* gradient[2];
  const uint16_t* output[2];
  uint16_t* copy[2];
  uint16_t* pairs;
  float* grad_bias;
};

void pack_pair(const GradientPair& args, int64_t filters) {
  for (int64_t f = 0; f < filters; f += kFilterGroup) {
    __m256i half[2];
    for (int k = 0; k < 2; ++k) {
      half[k] = args.gradient[k] == nullptr
                    ? _mm256_setzero_si256()
                    : where_positive(load_half(args.gradient[k] + f), args.output[k], f);
      if (args.copy[k] != nullptr) store_half(args.copy[k] + f, half[k]);
    }
    const __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(half[0]),
                                          _mm512_slli_epi32(_mm512_cvtepu16_epi32(half[1]), 16));
    _mm512_storeu_si512(args.pairs + 2 * f, pairs);
    const __m512 sum = _mm512_add_ps(to_float(half[0]), to_float(half[1]));
    _mm512_storeu_ps(args.grad_bias + f, _mm512_add_ps(_mm512_loadu_ps(args.grad_bias + f), sum));
  }
}

void pack_gradient(const GradientPack<uint16_t>& args) {
  for (int64_t p = 0; p < args.pixels; p += 2) {
    GradientPair pair{};
    for (int64_t k = 0; k < 2 && p + k < args.pixels; ++k) {
      const int64_t at = (p + k) * args.filters;
      pair.gradient[k] = args.gradient + at;
      pair.output[k] = args.output != nullptr ? args.output + at : nullptr;
      if (args.copy != nullptr) pair.copy[k] = args.copy + args.copy_offset[p + k];
    }
    pair.pairs = args.packed + p * args.filters;
    pair.grad_bias = args.grad_bias;
    pack_pair(pair, args.filters);
  }
}

void fold_frames(const Fold& args, uint16_t* output) {
  const int64_t blocks = args.width / 4;
  const int64_t channels = 16 * args.planes;
  // Pixel groups of four from two rows each: {row 0, 1, 2, 3} of the first and of the second block.
  const __m512i first = _mm512_set_epi64(13, 9, 5, 1, 12, 8, 4, 0);
  const __m512i second = _mm512_set_epi64(15, 11, 7, 3, 14, 10, 6, 2);
  for (int64_t by = 0; by < args.height / 4; ++by) {
    for (int64_t plane = 0; plane < args.planes; ++plane) {
      for (int64_t bx = 0; bx < blocks; bx += 4) {
        const int64_t block = bx + 4 <= blocks ? bx : blocks - 4;  // the last ones once more
        const __m512i a = two_rows(args, plane, 4 * by, 4 * block);
        const __m512i b = two_rows(args, plane, 4 * by + 2, 4 * block);
        const __m512i ab = _mm512_permutex2var_epi64(a, first, b);
        const __m512i cd = _mm512_permutex2var_epi64(a, second, b);
        uint16_t* out = output + (by * blocks + block) * channels + plane * 16;
        store_half(out, _mm512_castsi512_si256(ab));
        store_half(out + channels, _mm512_extracti64x4_epi64(ab, 1));
        store_half(out + 2 * channels, _mm512_castsi512_si256(cd));
        store_half(out + 3 * channels, _mm512_extracti64x4_epi64(cd, 1));
      }
    }
  }
}

}  // namespace

extern const Kernels<uint16_t> kKernels;
const Kernels<uint16_t> kKernels{product, weight_gradient, pack_gradient, fold_frames};

}  // namespace fastdistill::frames::avx512bf16
