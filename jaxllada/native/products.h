// Products of a few rows of the vocabulary with all hidden rows. Vectors lie along the hidden rows:
// each is a lane, so nothing is summed across lanes. The next rows are fetched meanwhile.
//
// Products may be late by one call: a block is there when the next call returns, or `finish`.
//
// Letters: N hidden rows, padded to whole vectors; D model width.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bytes.h"
#include "vectors.h"

// Rows of the vocabulary at a time, so that sums fill the registers:
#if defined(__AVX512F__)
constexpr int TILE = 12;  // 12 x 2 sums, 2 inputs: of 32 registers
#elif defined(__AVX__)
constexpr int TILE = 6;  // 6 x 2 sums, 2 inputs, a factor: of 16 registers
#else
constexpr int TILE = 12;
#endif

// float32: TILE rows of the vocabulary at a time.
struct Float32 {
  using Weight = float;
  static constexpr int ROWS = TILE;
  std::vector<float> hidden;  // [D, padded N]
  int64_t d, n;

  Float32(const float* x, int64_t rows, int64_t d) : d(d), n((rows + LANES - 1) / LANES * LANES) {
    hidden.assign(d * n, 0.0f);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < d; ++k) hidden[k * n + i] = x[i * d + k];
  }

  void take(const float*, const float*) {}
  const float* row_of(const float* weight, int64_t row) const { return weight + row * d; }

  struct Thread {
    void finish() {}
  };

  template <int rows, int vectors>
  void columns(const float* w, const char* next, int64_t first, float* block) const {
    Vec sums[rows][vectors] = {};
    auto add = [&](int64_t k) {
      const float* x = &hidden[k * n + first];
      for (int v = 0; v < rows; ++v)
        for (int i = 0; i < vectors; ++i) sums[v][i] += w[v * d + k] * at(x + i * LANES);
    };
    int64_t k = 0;
    for (; k + 16 <= d; k += 16)  // a line of every row
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        if (next && j < rows)  // one line after another: memory is fastest at that
          __builtin_prefetch(next + (k / 16 * rows + j) * LINE, 0, 2);
        add(k + j);
      }
    for (; k < d; ++k) add(k);
    for (int v = 0; v < rows; ++v)
      for (int i = 0; i < vectors; ++i)
        std::memcpy(block + v * n + first + i * LANES, &sums[v][i], sizeof(Vec));
  }

  template <int rows>
  void product(const float* w, const char* next, float* block) const {
    int64_t first = 0;
    for (; first + 2 * LANES <= n; first += 2 * LANES)
      columns<rows, 2>(w, first ? nullptr : next, first, block);
    if (first < n) columns<rows, 1>(w, first ? nullptr : next, first, block);
  }

  void multiply(Thread&, const float* w, int64_t rows, const char* next, float* block) const {
    if (rows == ROWS) return product<ROWS>(w, next, block);
    for (int64_t v = 0; v < rows; ++v) product<1>(w + v * d, nullptr, block + v * n);
  }
};

#if defined(JAXLLADA_HAS_TILES)
// bfloat16 on Intel's matrix unit: 32 rows of the vocabulary with 32 hidden rows at a time.
struct BFloat16 {
  using Weight = uint16_t;
  static constexpr int ROWS = 32;
  std::vector<uint16_t> hidden;  // [D / 2, padded N, 2]
  int64_t d, n;

  BFloat16(const uint16_t* x, int64_t rows, int64_t d) : d(d), n((rows + 15) / 16 * 16) {
    hidden.assign(d * n, 0);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < d; ++k) hidden[(k / 2 * n + i) * 2 + k % 2] = x[i * d + k];
  }

  void take(const uint16_t*, const float*) {}
  const uint16_t* row_of(const uint16_t* weight, int64_t row) const { return weight + row * d; }

  struct Thread {
    Tiles tiles;
    void finish() {}
  };

  template <bool is_wide>
  void columns(const uint16_t* w, const char* next, int64_t first, float* block) const {
    settle();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < d; k += 32) {
      if (next)
        for (int v = 0; v < ROWS; ++v) __builtin_prefetch(next + (k + v) * LINE, 0, 2);
      const uint16_t* x = &hidden[k * n + first * 2];
      _tile_loadd(4, w + k, d * 2);
      _tile_loadd(5, w + 16 * d + k, d * 2);
      _tile_loadd(6, x, n * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if (is_wide) {
        _tile_loadd(7, x + 32, n * 4);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, block + first, n * 4);
    _tile_stored(1, block + 16 * n + first, n * 4);
    if (is_wide) {
      _tile_stored(2, block + first + 16, n * 4);
      _tile_stored(3, block + 16 * n + first + 16, n * 4);
    }
  }

  void multiply(Thread&, const uint16_t* w, int64_t rows, const char* next, float* block) const {
    std::vector<uint16_t> padded;
    if (rows < ROWS) {  // the last rows of the vocabulary
      padded.assign(ROWS * d, 0);
      std::copy(w, w + rows * d, padded.begin());
      w = padded.data();
    }
    int64_t first = 0;
    for (; first + 32 <= n; first += 32) columns<true>(w, first ? nullptr : next, first, block);
    if (first < n) columns<false>(w, first ? nullptr : next, first, block);
  }
};

// float32 on the matrix unit, from a weight that was packed: 16 rows of the vocabulary at a time.
struct PackedFloat32 {
  using Weight = char;
  static constexpr int ROWS = Bytes::PANEL;
  // Hidden rows come from a norm: no number of theirs is far larger than the others.
  static constexpr int BYTES = Bytes::WEIGHT;
  std::vector<char> hidden;  // panels of 16 hidden rows
  std::vector<float> hidden_scale;
  const float* scale = nullptr;  // of the rows of the vocabulary, whole panels
  const char* weight = nullptr;
  int64_t d, n;

  PackedFloat32(const float* x, int64_t rows, int64_t d) : d(d), n(up(rows, ROWS)) {
    std::vector<float> turned(d * n, 0.0f);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < d; ++k) turned[k * n + i] = x[i * d + k];
    const int64_t bytes = Bytes::panel_bytes<BYTES>(d);
    hidden.resize(n / ROWS * bytes);
    hidden_scale.resize(n);
    for (int64_t i = 0; i < n; i += ROWS)
      Bytes::put_columns<BYTES>(&turned[i], d, n, ROWS, &hidden[i / ROWS * bytes],
                         &hidden_scale[i]);
  }

  void take(const char* panels, const float* scale_of_rows) {
    weight = panels;
    scale = scale_of_rows;
  }
  const char* row_of(const char* weight, int64_t row) const {
    return weight + row / ROWS * Bytes::panel_bytes<BYTES>(d);
  }

  struct Thread {
    Tiles tiles;
    Bytes::Multiplier<BYTES, BYTES> worker;
    void finish() { worker.finish(); }
  };

  void multiply(Thread& thread, const char* w, int64_t, const char* next, float* block) const {
    int64_t bytes = Bytes::panel_bytes<BYTES>(d), share = bytes / LINE / (n / ROWS);
    const float* own = scale + (w - weight) / bytes * ROWS;
    for (int64_t i = 0; i < n / ROWS; ++i)
      thread.worker.multiply(w, &hidden[i * bytes], d, own, &hidden_scale[i * ROWS],
                             block + i * ROWS, n,
                             {next ? next + i * share * LINE : nullptr, next ? share : 0});
  }
};
#endif
