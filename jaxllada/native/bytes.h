// float32 products of the matrix unit, by signed bytes.
//
// A row is scaled to whole numbers: of 24 bits if it is a weight, a 2^16 + b 2^8 + c, and of 32
// bits with a last byte d if it goes into a block's weights, where a few may be far larger than the
// others.
// Products of bytes and their sums are exact. Those that count 2^24 less than the largest, c c, d b
// and d c, are left out.
//
// Measured against float64, as a part of the result: 1.1e-7 to 1.7e-7, also with activations 3,000
// times the others (float32 in 16 sums: 0.8e-7 for K = 64, 3e-7 for 4,096). What suffers are
// numbers beside far larger ones that count as little: where such activations meet weights as many
// times smaller, 3.4e-5 for K = 64 and 0.5e-5 for 4,096, and where weights 300 times the others of
// their column meet activations as many times smaller, 1.1e-5. With three bytes on both sides, as
// in the head, large numbers cost 5 times the error of float32. Rows whose largest number is below
// 1e-31 lose digits; beyond 1e36 a product may overflow too early.
//
// A panel is 16 rows or columns, [K / 64][a, b, c and for activations d][a tile].
#pragma once

#include <cfloat>
#include <cmath>

#include "tiles.h"

#if defined(JAXLLADA_HAS_TILES)
struct Bytes {
  using Number = float;
  static constexpr int64_t PANEL = 16, UNIT = 64;
  static constexpr int WEIGHT = 3, ACTIVATION = 4;  // bytes of a number
  // Wider rows could leave int32: four products of a sum are up to 65024 a number.
  static constexpr int64_t WIDEST = INT32_MAX / 65024 / UNIT * UNIT;

  template <class Real>
  static Real round(Real x) { return x; }
  static float number(float x) { return x; }
  template <int bytes>
  static int64_t panel_bytes(int64_t k) { return up(k, UNIT) / UNIT * bytes * TILE_BYTES; }
  static int64_t weight_bytes(int64_t k) { return panel_bytes<WEIGHT>(k); }
  static int64_t activation_bytes(int64_t k) { return panel_bytes<ACTIVATION>(k); }

  // Row `r` of a left panel, from `k` numbers; the rest of it is zero. Returns its scale, NaN if a
  // number is not finite.
  template <int bytes>
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
    Range<bytes> range(_mm512_reduce_max_ps(high), _mm512_reduce_add_ps(odd));
    for (int64_t i = 0; i < up(k, UNIT); i += 16) {
      __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(part(i), _mm512_set1_ps(range.factor)));
      char* to = panel + i / UNIT * bytes * TILE_BYTES + r * LINE + i % UNIT;
      for (int byte = bytes - 1; byte >= 0; --byte) {
        __m512i low = byte ? lowest(v) : v;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + byte * TILE_BYTES),
                         _mm512_cvtepi32_epi8(low));
      }
    }
    return range.scale;
  }

  // A right panel from columns of a matrix [k, stride], of which `columns` exist.
  template <int bytes>
  static void put_columns(const float* w, int64_t k, int64_t stride, int64_t columns, char* panel,
                          float* scale) {
    std::memset(panel, 0, panel_bytes<bytes>(k));
    for (int64_t o = 0; o < columns; ++o) {
      float peak = 0, odd = 0;
      for (int64_t i = 0; i < k; ++i) {
        peak = std::max(peak, std::fabs(w[i * stride + o]));
        odd += w[i * stride + o] * 0.0f;
      }
      Range<bytes> range(peak, odd);
      scale[o] = range.scale;
      for (int64_t i = 0; i < k && range.factor != 0; ++i) {
        int32_t v = std::lrintf(w[i * stride + o] * range.factor);
        char* to = panel + i / UNIT * bytes * TILE_BYTES + i % UNIT / 4 * LINE + o * 4 + i % 4;
        for (int byte = bytes - 1; byte >= 0; --byte) {
          int8_t low = v;
          to[byte * TILE_BYTES] = low;
          v = (int64_t(v) - low) >> 8;
        }
      }
    }
  }

  // Multiplies panels one after the other. What a product's sums come to is worked out beside the
  // next product: the matrix unit does not wait. One side at most has four bytes.
  template <int left_bytes, int right_bytes>
  class Multiplier {
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
      // Tiles 0 to 3 sum what counts 2^8 less each time; 4 goes to 2: none waits for itself.
      for (int64_t u = 0; u < units; ++u) {
        ahead.fetch(lines);
        _tile_loadd(5, left, LINE);
        _tile_loadd(6, right, LINE);
        _tile_dpbssd(0, 5, 6);
        _tile_loadd(7, right + TILE_BYTES, LINE);
        _tile_dpbssd(1, 5, 7);
        _tile_loadd(7, right + 2 * TILE_BYTES, LINE);
        _tile_dpbssd(2, 5, 7);
        if (right_bytes == 4) {
          _tile_loadd(7, right + 3 * TILE_BYTES, LINE);
          _tile_dpbssd(3, 5, 7);
          _tile_loadd(7, right + 2 * TILE_BYTES, LINE);
        }
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
        if (left_bytes == 4) {
          _tile_loadd(5, left + 3 * TILE_BYTES, LINE);
          _tile_dpbssd(3, 5, 6);
        }
        left += left_bytes * TILE_BYTES;
        right += right_bytes * TILE_BYTES;
      }
      _tile_stored(0, sums[0], LINE);
      _tile_stored(1, sums[1], LINE);
      _tile_stored(2, sums[2], LINE);
      _tile_stored(3, sums[3], LINE);
      _tile_stored(4, sums[4], LINE);
      column = _mm512_mul_ps(_mm512_loadu_ps(column_scale), _mm512_set1_ps(power<right_bytes>()));
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
        y = _mm512_mul_ps(y, _mm512_set1_ps(row[written] * power<left_bytes>()));
        y = _mm512_mul_ps(y, column);
        _mm512_storeu_ps(to + written * pace, y);
      }
    }
  };

  using Worker = Multiplier<ACTIVATION, WEIGHT>;

 private:
  // What the first byte counts.
  template <int bytes>
  static constexpr float power() { return 1 << 8 * (bytes - 1); }

  // How numbers up to `peak` become whole; `odd` is NaN if one of them is not finite.
  template <int bytes>
  struct Range {
    static constexpr float WHOLE = 127 * power<bytes>();
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
