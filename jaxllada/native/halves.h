// bfloat16 products of the matrix unit, summed in float32.
//
// A panel is 32 rows or columns, [K / 32][2 tiles].
#pragma once

#include "tiles.h"

#if defined(JAXLLADA_HAS_TILES)
struct Halves {
  using Number = uint16_t;
  static constexpr int64_t PANEL = 32, UNIT = 32, STEP = 2 * TILE_BYTES, WIDEST = INT32_MAX;
  static constexpr int WEIGHT = 2, ACTIVATION = 2;  // bytes of a number

  static uint16_t bits(float x) {
    uint32_t v;
    std::memcpy(&v, &x, 4);
    return x != x ? 0x7fc0 : (v + 0x7fff + (v >> 16 & 1)) >> 16;
  }
  static float number(uint16_t x) {
    uint32_t v = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &v, 4);
    return y;
  }
  static float round(float x) { return number(bits(x)); }
  static Vec round(Vec x) { return rounded_to_half(x); }
  template <int bytes>
  static int64_t panel_bytes(int64_t k) { return up(k, UNIT) / UNIT * STEP; }
  static int64_t weight_bytes(int64_t k) { return panel_bytes<WEIGHT>(k); }
  static int64_t activation_bytes(int64_t k) { return panel_bytes<ACTIVATION>(k); }

  // Row `r` of a left panel, from `k` numbers; the rest of it is zero. Its scale is one.
  template <int bytes>
  static float put_row(const float* x, int64_t k, char* panel, int64_t r) {
    char* to = panel + r / 16 * TILE_BYTES + r % 16 * LINE;
    for (int64_t i = 0; i < up(k, UNIT); i += UNIT, to += STEP) {
      uint16_t* line = reinterpret_cast<uint16_t*>(to);
      int64_t there = std::min(UNIT, k - i);
      for (int64_t j = 0; j < there; ++j) line[j] = bits(x[i + j]);
      std::fill(line + there, line + UNIT, 0);
    }
    return 1;
  }

  // A right panel from columns of a matrix [k, stride], of which `columns` exist.
  template <int bytes>
  static void put_columns(const uint16_t* w, int64_t k, int64_t stride, int64_t columns,
                          char* panel, float* scale) {
    std::memset(panel, 0, panel_bytes<bytes>(k));
    std::fill_n(scale, columns, 1.0f);
    for (int64_t i = 0; i < k; ++i) {
      char* line = panel + i / UNIT * STEP + i % UNIT / 2 * LINE;
      for (int64_t o = 0; o < columns; ++o)
        reinterpret_cast<uint16_t*>(line + o / 16 * TILE_BYTES)[o % 16 * 2 + i % 2] =
            w[i * stride + o];
    }
  }

  struct Worker {
    // out[r, o] of two panels, rows `stride` apart.
    void multiply(const char* left, const char* right, int64_t k, const float*, const float*,
                  float* out, int64_t stride, Ahead ahead) {
      int64_t units = up(k, UNIT) / UNIT, lines = (ahead.lines + units - 1) / units;
      settle();
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t u = 0; u < units; ++u, left += STEP, right += STEP) {
        ahead.fetch(lines);
        _tile_loadd(4, left, LINE);
        _tile_loadd(5, left + TILE_BYTES, LINE);
        _tile_loadd(6, right, LINE);
        _tile_loadd(7, right + TILE_BYTES, LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      int64_t bytes = stride * 4;
      _tile_stored(0, out, bytes);
      _tile_stored(1, out + 16, bytes);
      _tile_stored(2, out + 16 * stride, bytes);
      _tile_stored(3, out + 16 * stride + 16, bytes);
    }

    void finish() {}
  };
};
#endif
