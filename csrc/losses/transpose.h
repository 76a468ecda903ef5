// SPDX-License-Identifier: MIT
// Tiles of rows turned into columns and back, so that the kernels for few actions put one row in each
// vector lane: with 18 actions a row never fills vectors, but 16 rows always do.
#pragma once

#include "losses/simd.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

// One stage of the transposition exchanges, between rows `block` apart, the lanes `block` apart.
template <int block>
struct Exchange {
  VInt first;
  VInt second;
  constexpr Exchange() : first{}, second{} {
    for (int lane = 0; lane < kFloatLanes; ++lane) {
      const bool low = (lane & block) == 0;
      first[lane] = low ? lane : kFloatLanes + lane - block;
      second[lane] = low ? lane + block : kFloatLanes + lane;
    }
  }
};

template <int block>
FASTDISTILL_HD void exchange_lanes(VFloat (&rows)[kFloatLanes]) {
  const Exchange<block> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < kFloatLanes; ++i) {
    if ((i & block) != 0) continue;
    const VFloat upper = rows[i];
    const VFloat lower = rows[i + block];
    rows[i] = __builtin_shuffle(upper, lower, lanes.first);
    rows[i + block] = __builtin_shuffle(upper, lower, lanes.second);
  }
}

FASTDISTILL_HD void transpose(VFloat (&rows)[kFloatLanes]) {
  exchange_lanes<1>(rows);
  exchange_lanes<2>(rows);
  if constexpr (kFloatLanes >= 8) exchange_lanes<4>(rows);
  if constexpr (kFloatLanes >= 16) exchange_lanes<8>(rows);
}

#if defined(__AVX512F__)

// Strips of up to four actions: four rows share a register, one per 128-bit lane, and are transposed
// within the lanes. `strip[k]` holds rows k, 4 + k, 8 + k and 12 + k before, column k after.
inline constexpr int64_t kNarrowStrip = 4;

FASTDISTILL_HD void transpose_within_lanes(__m512 (&strip)[4]) {
  const __m512 low_01 = _mm512_unpacklo_ps(strip[0], strip[1]);
  const __m512 low_23 = _mm512_unpacklo_ps(strip[2], strip[3]);
  const __m512 high_01 = _mm512_unpackhi_ps(strip[0], strip[1]);
  const __m512 high_23 = _mm512_unpackhi_ps(strip[2], strip[3]);
  strip[0] = _mm512_shuffle_ps(low_01, low_23, 0x44);
  strip[1] = _mm512_shuffle_ps(low_01, low_23, 0xEE);
  strip[2] = _mm512_shuffle_ps(high_01, high_23, 0x44);
  strip[3] = _mm512_shuffle_ps(high_01, high_23, 0xEE);
}

FASTDISTILL_HD void narrow_strip_to_columns(const float* tile, int64_t stride, int64_t rows,
                                            int64_t width, float* columns) {
  const auto present = static_cast<__mmask8>((1u << width) - 1u);
  const auto row = [&](int64_t i) {
    return i < rows ? _mm_maskz_loadu_ps(present, tile + i * stride) : _mm_setzero_ps();
  };
  __m512 strip[4];
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    const __m512 first = _mm512_castps128_ps512(row(k));
    const __m512 second = _mm512_insertf32x4(first, row(4 + k), 1);
    const __m512 third = _mm512_insertf32x4(second, row(8 + k), 2);
    strip[k] = _mm512_insertf32x4(third, row(12 + k), 3);
  }
  transpose_within_lanes(strip);
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    if (k < width) _mm512_store_ps(columns + k * kFloatLanes, strip[k]);
  }
}

FASTDISTILL_HD void columns_to_narrow_strip(const float* columns, int64_t rows, int64_t width,
                                            float* tile, int64_t stride) {
  const auto present = static_cast<__mmask8>((1u << width) - 1u);
  __m512 strip[4];
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    strip[k] = k < width ? _mm512_load_ps(columns + k * kFloatLanes) : _mm512_setzero_ps();
  }
  transpose_within_lanes(strip);  // its own inverse
  const auto put = [&](int64_t i, __m128 values) {
    if (i < rows) _mm_mask_storeu_ps(tile + i * stride, present, values);
  };
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    put(k, _mm512_castps512_ps128(strip[k]));
    put(4 + k, _mm512_extractf32x4_ps(strip[k], 1));
    put(8 + k, _mm512_extractf32x4_ps(strip[k], 2));
    put(12 + k, _mm512_extractf32x4_ps(strip[k], 3));
  }
}

#else

// Without masked loads a strip that is not a whole vector is moved element by element.
inline constexpr int64_t kNarrowStrip = kFloatLanes - 1;

FASTDISTILL_HD void narrow_strip_to_columns(const float* tile, int64_t stride, int64_t rows,
                                            int64_t width, float* columns) {
  for (int64_t j = 0; j < width; ++j) {
    VFloat column{};
    for (int64_t i = 0; i < rows; ++i) column[i] = tile[i * stride + j];
    Math<float>::store(columns + j * kFloatLanes, column);
  }
}

FASTDISTILL_HD void columns_to_narrow_strip(const float* columns, int64_t rows, int64_t width,
                                            float* tile, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < width; ++j) tile[i * stride + j] = columns[j * kFloatLanes + i];
  }
}

#endif

// columns[j * lanes + i] = tile[i * stride + j]; lanes beyond `rows` become 0.
FASTDISTILL_HD void tile_to_columns(const float* tile, int64_t stride, int64_t rows, int64_t actions,
                                    float* columns) {
  constexpr int64_t lanes = kFloatLanes;
  for (int64_t start = 0; start < actions; start += lanes) {
    const int64_t width = actions - start < lanes ? actions - start : lanes;
    if (width <= kNarrowStrip) {
      narrow_strip_to_columns(tile + start, stride, rows, width, columns + start * lanes);
      continue;
    }
    VFloat strip[kFloatLanes];
    if (rows == lanes && width == lanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) strip[i] = Math<float>::load(tile + i * stride + start);
    } else {
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) {
        strip[i] =
            i < rows ? Math<float>::load_first(tile + i * stride + start, width, 0.0f) : VFloat{};
      }
    }
    transpose(strip);
#pragma GCC unroll 16
    for (int64_t j = 0; j < lanes; ++j) {
      if (j < width) Math<float>::store(columns + (start + j) * lanes, strip[j]);
    }
  }
}

FASTDISTILL_HD void columns_to_tile(const float* columns, int64_t rows, int64_t actions, float* tile,
                                    int64_t stride) {
  constexpr int64_t lanes = kFloatLanes;
  for (int64_t start = 0; start < actions; start += lanes) {
    const int64_t width = actions - start < lanes ? actions - start : lanes;
    if (width <= kNarrowStrip) {
      columns_to_narrow_strip(columns + start * lanes, rows, width, tile + start, stride);
      continue;
    }
    VFloat strip[kFloatLanes];
#pragma GCC unroll 16
    for (int64_t j = 0; j < lanes; ++j) {
      strip[j] = j < width ? Math<float>::load(columns + (start + j) * lanes) : VFloat{};
    }
    transpose(strip);
    if (rows == lanes && width == lanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) Math<float>::store(tile + i * stride + start, strip[i]);
    } else {
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) {
        if (i < rows) Math<float>::store_first(tile + i * stride + start, width, strip[i]);
      }
    }
  }
}

// float64 is not worth a transposition of its own.
inline void tile_to_columns(const double* tile, int64_t stride, int64_t rows, int64_t actions,
                            double* columns) {
  for (int64_t j = 0; j < actions; ++j) {
    for (int64_t i = 0; i < kDoubleLanes; ++i) {
      columns[j * kDoubleLanes + i] = i < rows ? tile[i * stride + j] : 0.0;
    }
  }
}

inline void columns_to_tile(const double* columns, int64_t rows, int64_t actions, double* tile,
                            int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < actions; ++j) tile[i * stride + j] = columns[j * kDoubleLanes + i];
  }
}

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
