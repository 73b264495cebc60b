// float32 products of the matrix unit, by three signed bytes.
//
// A row is scaled to whole numbers of 24 bits, v = a 2^16 + b 2^8 + c. Products of bytes and their
// sums are exact; of the nine only c c is left out, which is below what float32 holds.
//
// A number is rounded by up to 2^-24 of the largest of its row or column. Measured against float64,
// rows of normal numbers have half the error of float32 sums from K = 2048 on, twice it at K = 64.
// Where a few numbers are far larger than the others it is 3 to 6 times that of float32 if they
// make up the result. Where they meet weights near zero it grows with them: numbers 3000 times
// larger cost 1.4e-4 of the result. Rows whose largest number is below 1e-31 lose digits; beyond
// 1e36 a product may overflow too early.
//
// A panel is 16 rows or columns, [K / 64][a, b, c][a tile].
#pragma once

#include <cfloat>
#include <cmath>

#include "tiles.h"

#if defined(JAXLLADA_HAS_TILES)
struct Bytes {
  using Number = float;
  static constexpr int64_t PANEL = 16, UNIT = 64, STEP = 3 * TILE_BYTES;
  static constexpr float WHOLE = 127.0f * 65536;
  // Wider rows could leave int32: a c, c a and b b are up to 48896 a number.
  static constexpr int64_t WIDEST = INT32_MAX / 48896 / UNIT * UNIT;

  template <class Real>
  static Real round(Real x) { return x; }
  static float number(float x) { return x; }
  static int64_t panel_bytes(int64_t k) { return up(k, UNIT) / UNIT * STEP; }

  // Row `r` of a left panel, from `k` numbers; the rest of it is zero. Returns its scale, NaN if a
  // number is not finite.
  static float put_row(const float* x, int64_t k, char* panel, int64_t r) {
    auto part = [&](int64_t i) {
      if (i + 16 <= k) return _mm512_loadu_ps(x + i);
      return _mm512_maskz_loadu_ps((1u << std::max<int64_t>(0, k - i)) - 1, x + i);
    };
    __m512 high = _mm512_setzero_ps(), odd = high;
    for (int64_t i = 0; i < k; i += 16) {
      high = _mm512_max_ps(high, _mm512_abs_ps(part(i)));
      odd = _mm512_fmadd_ps(part(i), _mm512_setzero_ps(), odd);
    }
    Range range(_mm512_reduce_max_ps(high), _mm512_reduce_add_ps(odd));
    for (int64_t i = 0; i < up(k, UNIT); i += 16) {
      __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(part(i), _mm512_set1_ps(range.factor)));
      __m512i c = lowest(v), b = lowest(v);
      char* to = panel + i / UNIT * STEP + r * LINE + i % UNIT;
      for (__m512i byte : {v, b, c}) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(byte));
        to += TILE_BYTES;
      }
    }
    return range.scale;
  }

  // A right panel from columns of a matrix [k, stride], of which `columns` exist.
  static void put_columns(const float* w, int64_t k, int64_t stride, int64_t columns, char* panel,
                          float* scale) {
    std::memset(panel, 0, panel_bytes(k));
    for (int64_t o = 0; o < columns; ++o) {
      float peak = 0, odd = 0;
      for (int64_t i = 0; i < k; ++i) {
        peak = std::max(peak, std::fabs(w[i * stride + o]));
        odd += w[i * stride + o] * 0.0f;
      }
      Range range(peak, odd);
      scale[o] = range.scale;
      for (int64_t i = 0; i < k && range.factor != 0; ++i) {
        int32_t v = std::lrintf(w[i * stride + o] * range.factor);
        char* to = panel + i / UNIT * STEP + i % UNIT / 4 * LINE + o * 4 + i % 4;
        int8_t c = v, b = (v - c) >> 8;
        to[0] = (((v - c) >> 8) - b) >> 8;
        to[TILE_BYTES] = b;
        to[2 * TILE_BYTES] = c;
      }
    }
  }

  // Multiplies panels one after the other. What a product's sums come to is worked out beside the
  // next product: the matrix unit does not wait.
  class Worker {
   public:
    // out[r, o] of two panels, rows `stride` apart; there when the next call returns, or `finish`.
    void multiply(const char* left, const char* right, int64_t k, const float* row_scale,
                  const float* column_scale, float* out, int64_t stride, Ahead ahead) {
      int64_t units = up(k, UNIT) / UNIT, lines = (ahead.lines + 2 * units - 1) / (2 * units);
      settle();
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      _tile_zero(4);
      // Tiles 0 to 3 sum what counts 2^32, 2^24, 2^16 and 2^8; 4 goes to 2: none waits for itself.
      for (int64_t u = 0; u < units; ++u, left += STEP, right += STEP) {
        ahead.fetch(lines);
        _tile_loadd(5, left, LINE);
        _tile_loadd(6, right, LINE);
        _tile_dpbssd(0, 5, 6);
        _tile_loadd(7, right + TILE_BYTES, LINE);
        _tile_dpbssd(1, 5, 7);
        _tile_loadd(7, right + 2 * TILE_BYTES, LINE);
        _tile_dpbssd(2, 5, 7);
        write((u + 1) * PANEL / units);
        ahead.fetch(lines);
        _tile_loadd(5, left + TILE_BYTES, LINE);
        _tile_dpbssd(3, 5, 7);
        _tile_dpbssd(1, 5, 6);
        _tile_loadd(7, right + TILE_BYTES, LINE);
        _tile_dpbssd(4, 5, 7);
        _tile_loadd(5, left + 2 * TILE_BYTES, LINE);
        _tile_dpbssd(3, 5, 7);
        _tile_dpbssd(2, 5, 6);
      }
      _tile_stored(0, sums[0], LINE);
      _tile_stored(1, sums[1], LINE);
      _tile_stored(2, sums[2], LINE);
      _tile_stored(3, sums[3], LINE);
      _tile_stored(4, sums[4], LINE);
      column = _mm512_mul_ps(_mm512_loadu_ps(column_scale), _mm512_set1_ps(65536));
      row = row_scale;
      to = out;
      pace = stride;
      written = 0;
    }

    void finish() { write(PANEL); }

   private:
    alignas(64) int32_t sums[5][16][16];
    __m512 column;
    const float* row;
    float* to;
    int64_t pace, written = PANEL;

    void write(int64_t rows) {
      const __m512 byte = _mm512_set1_ps(1.0f / 256);
      for (; written < rows; ++written) {
        auto sum = [&](int i) { return _mm512_load_si512(sums[i][written]); };
        auto real = [](__m512i whole) { return _mm512_cvtepi32_ps(whole); };
        __m512 y = _mm512_fmadd_ps(real(sum(3)), byte, real(_mm512_add_epi32(sum(2), sum(4))));
        y = _mm512_fmadd_ps(_mm512_fmadd_ps(y, byte, real(sum(1))), byte, real(sum(0)));
        y = _mm512_mul_ps(_mm512_mul_ps(y, _mm512_set1_ps(row[written] * 65536)), column);
        _mm512_storeu_ps(to + written * pace, y);
      }
    }
  };

 private:
  // How numbers up to `peak` become whole; `odd` is NaN if one of them is not finite.
  struct Range {
    float factor = 0, scale = 0;
    Range(float peak, float odd) {
      if (odd != 0) scale = NAN;
      else if (peak > FLT_MIN)  // both stay finite and normal
        factor = std::min(WHOLE / peak, 1 / FLT_MIN), scale = std::max(peak / WHOLE, FLT_MIN);
    }
  };

  // Takes the lowest byte off, with its sign.
  static __m512i lowest(__m512i& v) {
    __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24);
    v = _mm512_srai_epi32(_mm512_sub_epi32(v, low), 8);
    return low;
  }
};
#endif
