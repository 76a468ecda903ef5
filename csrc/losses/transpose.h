// SPDX-License-Identifier: MIT
// Tiles of rows turned into columns and back, so that the kernels for few actions put one row in
// each vector lane: with 18 actions a row never fills vectors, but 16 rows always do.
//
// Four actions at a time: a quad is four adjacent actions of one row. Quads of rows k, 4 + k, 8 +
// k... are loaded into the 128-bit parts of register k; transposing 4 x 4 within the parts then
// leaves action k of all rows, in order, in register k. Loads place the data, so few shuffles are
// needed.
#pragma once

#include <utility>

#include "losses/simd.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

using Quad = float __attribute__((vector_size(16)));
using QuadUnaligned = float __attribute__((vector_size(16), aligned(4), may_alias));
inline constexpr int kQuads = kFloatLanes / 4;

FASTDISTILL_HD Quad load_quad(const float* p, int64_t width) {
  if (width == 4) return *reinterpret_cast<const QuadUnaligned*>(p);
#if defined(__AVX512VL__)
  return reinterpret_cast<Quad>(_mm_maskz_loadu_ps(static_cast<__mmask8>((1u << width) - 1u), p));
#else
  if (width == 1) return Quad{p[0]};
  if (width == 2) return Quad{p[0], p[1]};
  return Quad{p[0], p[1], p[2]};
#endif
}

FASTDISTILL_HD void store_quad(float* p, int64_t width, Quad quad) {
  if (width == 4) {
    *reinterpret_cast<QuadUnaligned*>(p) = quad;
  } else if (width == 1) {
    p[0] = quad[0];
  } else {
    __builtin_memcpy(p, &quad, 2 * sizeof(float));
    if (width == 3) p[2] = quad[2];
  }
}

FASTDISTILL_HD VFloat join(const Quad (&quads)[kQuads]) {
#if defined(__AVX512F__)
  // Masked broadcasts from memory keep the shuffle unit free for the transposition.
  __m512 all = _mm512_broadcast_f32x4(reinterpret_cast<__m128>(quads[0]));
  all = _mm512_mask_broadcast_f32x4(all, 0x00F0, reinterpret_cast<__m128>(quads[1]));
  all = _mm512_mask_broadcast_f32x4(all, 0x0F00, reinterpret_cast<__m128>(quads[2]));
  return reinterpret_cast<VFloat>(
      _mm512_mask_broadcast_f32x4(all, 0xF000, reinterpret_cast<__m128>(quads[3])));
#elif defined(__AVX2__)
  return reinterpret_cast<VFloat>(
      _mm256_set_m128(reinterpret_cast<__m128>(quads[1]), reinterpret_cast<__m128>(quads[0])));
#else
  return quads[0];
#endif
}

FASTDISTILL_HD void split(VFloat v, Quad (&quads)[kQuads]) {
#if defined(__AVX512F__)
  const __m512 all = reinterpret_cast<__m512>(v);
  quads[0] = reinterpret_cast<Quad>(_mm512_castps512_ps128(all));
  quads[1] = reinterpret_cast<Quad>(_mm512_extractf32x4_ps(all, 1));
  quads[2] = reinterpret_cast<Quad>(_mm512_extractf32x4_ps(all, 2));
  quads[3] = reinterpret_cast<Quad>(_mm512_extractf32x4_ps(all, 3));
#elif defined(__AVX2__)
  const __m256 all = reinterpret_cast<__m256>(v);
  quads[0] = reinterpret_cast<Quad>(_mm256_castps256_ps128(all));
  quads[1] = reinterpret_cast<Quad>(_mm256_extractf128_ps(all, 1));
#else
  quads[0] = v;
#endif
}

// Lane i of the result comes from lane `pattern[i % 4]` of the same 128-bit part; patterns of 4 and
// more count on into `y`.
template <int a, int b, int c, int d, size_t... lane>
FASTDISTILL_HD VFloat shuffle_parts(VFloat x, VFloat y, std::index_sequence<lane...>) {
  constexpr int pattern[4] = {a, b, c, d};
  return __builtin_shufflevector(x, y,
                                 (static_cast<int>(lane) / 4 * 4 + pattern[lane % 4] % 4 +
                                  pattern[lane % 4] / 4 * kFloatLanes)...);
}

template <int a, int b, int c, int d>
FASTDISTILL_HD VFloat shuffle_parts(VFloat x, VFloat y) {
  return shuffle_parts<a, b, c, d>(x, y, std::make_index_sequence<kFloatLanes>());
}

// Its own inverse.
FASTDISTILL_HD void transpose_parts(VFloat (&strip)[4]) {
  const VFloat low_01 = shuffle_parts<0, 4, 1, 5>(strip[0], strip[1]);
  const VFloat low_23 = shuffle_parts<0, 4, 1, 5>(strip[2], strip[3]);
  const VFloat high_01 = shuffle_parts<2, 6, 3, 7>(strip[0], strip[1]);
  const VFloat high_23 = shuffle_parts<2, 6, 3, 7>(strip[2], strip[3]);
  strip[0] = shuffle_parts<0, 1, 4, 5>(low_01, low_23);
  strip[1] = shuffle_parts<2, 3, 6, 7>(low_01, low_23);
  strip[2] = shuffle_parts<0, 1, 4, 5>(high_01, high_23);
  strip[3] = shuffle_parts<2, 3, 6, 7>(high_01, high_23);
}

template <bool all_rows>
FASTDISTILL_HD VFloat strip_to_columns(const float* tile, int64_t stride, int64_t rows,
                                       int64_t width, float* columns, VFloat most) {
  VFloat strip[4];
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    Quad quads[kQuads];
#pragma GCC unroll 4
    for (int64_t part = 0; part < kQuads; ++part) {
      const int64_t row = 4 * part + k;
      quads[part] = all_rows || row < rows ? load_quad(tile + row * stride, width) : Quad{};
    }
    strip[k] = join(quads);
  }
  transpose_parts(strip);
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    if (k >= width) break;
    Math<float>::store(columns + k * kFloatLanes, strip[k]);
    most = larger(strip[k], most);
  }
  return most;
}

template <bool all_rows, class Column>
FASTDISTILL_HD void columns_to_strip(Column column, int64_t first, int64_t rows, int64_t width,
                                     float* tile, int64_t stride) {
  VFloat strip[4];
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    strip[k] = k < width ? column((first + k) * kFloatLanes) : VFloat{};
  }
  transpose_parts(strip);
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    Quad quads[kQuads];
    split(strip[k], quads);
#pragma GCC unroll 4
    for (int64_t part = 0; part < kQuads; ++part) {
      const int64_t row = 4 * part + k;
      if (all_rows || row < rows) store_quad(tile + first + row * stride, width, quads[part]);
    }
  }
}

#if defined(__AVX512F__)

using HalfUnaligned = float __attribute__((vector_size(32), aligned(4), may_alias));

FASTDISTILL_HD VFloat join_halves(const float* low, const float* high) {
  return __builtin_shufflevector(*reinterpret_cast<const HalfUnaligned*>(low),
                                 *reinterpret_cast<const HalfUnaligned*>(high), 0, 1, 2, 3, 4, 5, 6,
                                 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

FASTDISTILL_HD void split_halves(VFloat v, float* low, float* high) {
  *reinterpret_cast<HalfUnaligned*>(low) = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  *reinterpret_cast<HalfUnaligned*>(high) =
      __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}

// The 128-bit parts a, b of x and c, d of y, where 4 and more count on into y.
template <int a, int b, int c, int d, size_t... lane>
FASTDISTILL_HD VFloat choose_parts(VFloat x, VFloat y, std::index_sequence<lane...>) {
  constexpr int part[4] = {a, b, c, d};
  return __builtin_shufflevector(x, y, (part[lane / 4] * 4 + static_cast<int>(lane) % 4)...);
}

template <int a, int b, int c, int d>
FASTDISTILL_HD VFloat choose_parts(VFloat x, VFloat y) {
  return choose_parts<a, b, c, d>(x, y, std::make_index_sequence<16>());
}

// Eight actions of sixteen rows: half a vector of row k beside that of row k + 4, so that one more
// exchange of parts completes a transposition within the parts.
FASTDISTILL_HD VFloat block_to_columns(const float* tile, int64_t stride, float* columns,
                                       VFloat most) {
  VFloat upper[4];
  VFloat lower[4];
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    upper[k] = join_halves(tile + k * stride, tile + (k + 4) * stride);
    lower[k] = join_halves(tile + (k + 8) * stride, tile + (k + 12) * stride);
  }
  transpose_parts(upper);
  transpose_parts(lower);
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    const VFloat first = choose_parts<0, 2, 4, 6>(upper[k], lower[k]);
    const VFloat second = choose_parts<1, 3, 5, 7>(upper[k], lower[k]);
    Math<float>::store(columns + k * kFloatLanes, first);
    Math<float>::store(columns + (k + 4) * kFloatLanes, second);
    upper[k] = larger(first, second);
  }
  return larger(larger(larger(upper[0], upper[1]), larger(upper[2], upper[3])), most);
}

template <class Column>
FASTDISTILL_HD void columns_to_block(Column column, int64_t first, float* tile, int64_t stride) {
  VFloat upper[4];
  VFloat lower[4];
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    const VFloat left = column((first + k) * kFloatLanes);
    const VFloat right = column((first + k + 4) * kFloatLanes);
    upper[k] = choose_parts<0, 4, 1, 5>(left, right);
    lower[k] = choose_parts<2, 6, 3, 7>(left, right);
  }
  transpose_parts(upper);
  transpose_parts(lower);
  float* const row = tile + first;
#pragma GCC unroll 4
  for (int64_t k = 0; k < 4; ++k) {
    split_halves(upper[k], row + k * stride, row + (k + 4) * stride);
    split_halves(lower[k], row + (k + 8) * stride, row + (k + 12) * stride);
  }
}

#endif

// columns[j * lanes + i] = tile[i * stride + j]; lanes beyond `rows` become 0. Returns each row's
// maximum. Where the actions are no multiple of four, the last quad starts earlier and moves some
// columns twice: that is cheaper than part of a quad.
FASTDISTILL_HD VFloat tile_to_columns(const float* tile, int64_t stride, int64_t rows,
                                      int64_t actions, float* columns) {
  const int64_t last = actions - 4;
  VFloat most = Math<float>::broadcast(-Math<float>::infinity());
  const bool whole = rows == kFloatLanes && last >= 0;
  int64_t j = 0;
  if (!whole) {
    for (; j < actions; j += 4) {
      const int64_t width = actions - j < 4 ? actions - j : 4;
      most =
          strip_to_columns<false>(tile + j, stride, rows, width, columns + j * kFloatLanes, most);
    }
    return most;
  }
#if defined(__AVX512F__)
  for (; j + 8 <= actions; j += 8) {
    most = block_to_columns(tile + j, stride, columns + j * kFloatLanes, most);
  }
  if (j == actions) return most;
#endif
  for (; j < last; j += 4) {
    most = strip_to_columns<true>(tile + j, stride, rows, 4, columns + j * kFloatLanes, most);
  }
  return strip_to_columns<true>(tile + last, stride, rows, 4, columns + last * kFloatLanes, most);
}

// tile[i * stride + j] = lane i of column(j * lanes), which may be asked for twice.
template <class Column>
FASTDISTILL_HD void columns_to_tile(Column column, int64_t rows, int64_t actions, float* tile,
                                    int64_t stride) {
  const int64_t last = actions - 4;
  const bool whole = rows == kFloatLanes && last >= 0;
  int64_t j = 0;
  if (!whole) {
    for (; j < actions; j += 4) {
      const int64_t width = actions - j < 4 ? actions - j : 4;
      columns_to_strip<false>(column, j, rows, width, tile, stride);
    }
    return;
  }
#if defined(__AVX512F__)
  for (; j + 8 <= actions; j += 8) columns_to_block(column, j, tile, stride);
  if (j == actions) return;
#endif
  for (; j < last; j += 4) columns_to_strip<true>(column, j, rows, 4, tile, stride);
  columns_to_strip<true>(column, last, rows, 4, tile, stride);
}

// float64 is not worth a transposition of its own.
FASTDISTILL_HD VDouble tile_to_columns(const double* tile, int64_t stride, int64_t rows,
                                       int64_t actions, double* columns) {
  VDouble most = Math<double>::broadcast(-Math<double>::infinity());
  for (int64_t j = 0; j < actions; ++j) {
    for (int64_t i = 0; i < kDoubleLanes; ++i) {
      columns[j * kDoubleLanes + i] = i < rows ? tile[i * stride + j] : 0.0;
    }
    const VDouble column = Math<double>::load(columns + j * kDoubleLanes);
    most = larger(column, most);
  }
  return most;
}

template <class Column>
FASTDISTILL_HD void columns_to_tile(Column column, int64_t rows, int64_t actions, double* tile,
                                    int64_t stride) {
  for (int64_t j = 0; j < actions; ++j) {
    const VDouble values = column(j * kDoubleLanes);
    for (int64_t i = 0; i < rows; ++i) tile[i * stride + j] = values[i];
  }
}

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
