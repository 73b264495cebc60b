// All Transformer blocks of a mask predictor in one call, on Intel's matrix unit.
//
// A call computes some positions of every row, renews their keys and values among those that are
// kept, and gives the hidden rows of a window. Threads go from phase to phase together (team.h).
// Rounding is that of models/block.py: products and norms are rounded once to the activation type.
//
// Letters: G rows of a call, L positions, R of them given, S of the window, D model width, H head
// width, F inner width.
#pragma once

#include <memory>
#include <vector>

#include "attention.h"
#include "bytes.h"
#include "halves.h"
#include "inputs.h"
#include "scratch.h"
#include "team.h"

#if defined(JAXLLADA_HAS_TILES)
template <class Format>
class Call {
  using Number = typename Format::Number;
  using Crew = Team<Tiles>;

 public:
  Call(Shape shape, const Inputs& in, Number* kept_k, Number* kept_v, Number* out, Crew& crew,
       Scratch& scratch)
      : shape(shape), in(in), kept_k(kept_k), kept_v(kept_v), out(out), crew(crew) {
    low = std::min(in.first, in.window);
    count = std::max(in.last, in.window + shape.s) - low;
    int64_t rows = up(shape.g * count, Format::PANEL), widest = std::max(shape.d, shape.f);
    pace = up(widest, Format::PANEL) + LANES;  // never a multiple of the cache's period
    x = scratch.take<float>(rows * shape.d);
    for (auto& y : ys) y = scratch.take<float>(rows * pace);
    panels = scratch.take<char>(rows / Format::PANEL * Format::activation_bytes(widest));
    scale = scratch.take<float>(rows);
    int64_t kept = shape.g * shape.kv_heads * shape.l * shape.h;
    if (sizeof(Number) != sizeof(float))
      for (auto& wide : wides) wide = scratch.take<float>(kept);
  }

  void run() {
    each_row([&](int64_t row) {
      const Number* from = static_cast<const Number*>(in.x) + given(row, shape.g) * shape.d;
      for (int64_t i = 0; i < shape.d; ++i) x[row * shape.d + i] = Format::number(from[i]);
    });
    for (int64_t layer = 0; layer < shape.layers; ++layer) block(layer);
    each_row([&](int64_t row) {
      for (int64_t i = 0; i < shape.d; ++i) store(out[row * shape.d + i], x[row * shape.d + i]);
    });
  }

 private:
  Shape shape;
  const Inputs& in;
  Number *kept_k, *kept_v, *out;
  Crew& crew;
  int64_t low, count, pace;  // first position, positions of each row
  float *x, *ys[3], *scale, *wides[2];
  char* panels;

  static void store(float& to, float x) { to = x; }
  static void store(uint16_t& to, float x) { to = Halves::bits(x); }

  int64_t rows() const { return shape.g * count; }
  int64_t position(int64_t row) const { return low + row % count; }
  // Where a row is among those that are given, for each of `batch` rows of a call or for all.
  int64_t given(int64_t row, int64_t batch) const {
    return (batch == 1 ? 0 : row / count) * shape.r + position(row) - in.origin;
  }

  template <class Job>
  void each_row(const Job& job) {
    crew.share(rows(), [&](int64_t from, int64_t to) {
      for (int64_t row = from; row < to; ++row) job(row);
    });
  }

  void block(int64_t layer) {
    each_row([&](int64_t row) { put_normed(in.attn_norm, layer, row); });
    const bool is_last = layer + 1 == shape.layers;  // there only the window asks
    multiply(layer, {is_last ? nullptr : &in.q, &in.k, &in.v});
    each_row([&](int64_t row) { keep(layer, row); });
    if (is_last) {
      narrow();
      each_row([&](int64_t row) { put_normed(in.attn_norm, layer, row); });
      multiply(layer, {&in.q});
    }
    attend(layer);
    each_row([&](int64_t row) { put(ys[1] + row * pace, shape.d, row); });
    multiply(layer, {&in.out});
    each_row([&](int64_t row) {
      add(row);
      put_normed(in.ff_norm, layer, row);
    });
    multiply(layer, {&in.gate, &in.up});
    each_row([&](int64_t row) { put_inner(row); });
    multiply(layer, {&in.down});
    each_row([&](int64_t row) { add(row); });
  }

  // From here on there are the rows of the window alone.
  void narrow() {
    int64_t skipped = in.window - low;
    for (int64_t g = 0; g < shape.g; ++g)
      std::memmove(x + g * shape.s * shape.d, x + (g * count + skipped) * shape.d,
                   shape.s * shape.d * sizeof(float));
    low = in.window;
    count = shape.s;
  }

  void put(const float* y, int64_t width, int64_t row) {
    constexpr int64_t PANEL = Format::PANEL;
    char* panel = panels + row / PANEL * Format::activation_bytes(width);
    scale[row] = Format::template put_row<Format::ACTIVATION>(y, width, panel, row % PANEL);
  }

  void put_normed(const void* weights, int64_t layer, int64_t row) {
    const Number* weight = static_cast<const Number*>(weights) + layer * shape.d;
    const float* from = x + row * shape.d;
    float* y = ys[1] + row * pace;
    float factor = 1 / std::sqrt(squares(from, shape.d) / shape.d + shape.eps);
    for (int64_t i = 0; i < shape.d; ++i)
      y[i] = Format::round(Format::round(from[i] * factor) * Format::number(weight[i]));
    put(y, shape.d, row);
  }

  void put_inner(int64_t row) {
    float *gate = ys[0] + row * pace, *other = ys[1] + row * pace;
    for (int64_t i = 0; i < shape.f; i += LANES) {
      Vec y = Format::round(silu(Format::round(at(gate + i))));
      y = Format::round(y * Format::round(at(other + i)));
      std::memcpy(gate + i, &y, sizeof y);
    }
    put(gate, shape.f, row);
  }

  void add(int64_t row) {
    const float* y = ys[0] + row * pace;
    float* to = x + row * shape.d;
    for (int64_t i = 0; i < shape.d; ++i) to[i] = Format::round(to[i] + Format::round(y[i]));
  }

  // The rows that were put times some weights, into ys[0], ys[1] and ys[2]; not rounded yet.
  void multiply(int64_t layer, std::vector<const Weight*> weights) {
    constexpr int64_t PANEL = Format::PANEL, NEAR = 1 << 19;
    int64_t left = up(rows(), PANEL) / PANEL, total = 0;
    for (const Weight* one : weights) total += one ? one->count : 0;
    // As many rows at a time as stay near the core beside the weights of a part.
    int64_t bytes = Format::activation_bytes(weights.back()->in), few = 1 + NEAR / bytes;
    crew.share(total, [&](int64_t from, int64_t to) {
      typename Format::Worker worker;
      for (int64_t first = 0; first < left; first += few)
        for (int64_t panel = from; panel < to; ++panel) {
          int64_t which = 0, own = panel, last = std::min(left, first + few);
          for (; !weights[which] || own >= weights[which]->count; ++which)
            own -= weights[which] ? weights[which]->count : 0;
          const Weight& w = *weights[which];
          const char* right = w.template at<Format>(layer, own);
          const char* next = right + Format::weight_bytes(w.in);
          int64_t share = own + 1 < w.count ? (next - right) / LINE / (last - first) + 1 : 0;
          for (int64_t m = first; m < last; ++m)
            worker.multiply(panels + m * bytes, right, w.in, scale + m * PANEL,
                            w.template scale_at<Format>(layer, own),
                            ys[which] + m * PANEL * pace + own * PANEL, pace,
                            {next + (m - first) * share * LINE, share});
        }
      worker.finish();
    });
  }

  // Turns the heads of a row by the angles of its position.
  void turn(float* y, int64_t heads, int64_t row) const {
    int64_t half = shape.h / 2, place = given(row, in.angle_rows) * half;
    const float *cos = in.cos + place, *sin = in.sin + place;
    for (int64_t head = 0; head < heads; ++head, y += shape.h)
      for (int64_t i = 0; i < half; ++i) {
        float a = Format::round(y[i]), b = Format::round(y[i + half]);
        y[i] = Format::round(a * cos[i] - b * sin[i]);
        y[i + half] = Format::round(b * cos[i] + a * sin[i]);
      }
  }

  int64_t place(int64_t layer, int64_t g, int64_t head) const {
    return ((layer * shape.g + g) * shape.kv_heads + head) * shape.l * shape.h;
  }

  // Keeps the keys and values of a row, if they are to be renewed.
  void keep(int64_t layer, int64_t row) {
    int64_t p = position(row);
    if (p < in.first || p >= in.last) return;
    float *k = ys[1] + row * pace, *v = ys[2] + row * pace;
    turn(k, shape.kv_heads, row);
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      int64_t to = place(layer, row / count, head) + p * shape.h;
      for (int64_t i = 0; i < shape.h; ++i) {
        store(kept_k[to + i], k[head * shape.h + i]);
        store(kept_v[to + i], v[head * shape.h + i]);
      }
    }
  }

  void attend(int64_t layer) {
    int64_t all = place(layer, shape.g, 0) - place(layer, 0, 0), start = place(layer, 0, 0);
    const float *k, *v;
    if constexpr (sizeof(Number) == sizeof(float)) {
      k = kept_k + start, v = kept_v + start;
    } else {
      crew.share(all, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
          wides[0][i] = Format::number(kept_k[start + i]);
          wides[1][i] = Format::number(kept_v[start + i]);
        }
      });
      k = wides[0], v = wides[1];
    }
    each_row([&](int64_t row) { turn(ys[0] + row * pace, shape.heads, row); });
    int64_t parts = (count + QUERIES - 1) / QUERIES;
    crew.run(shape.g * shape.heads * parts, [&](int64_t task) {
      int64_t part = task % parts, head = task / parts % shape.heads;
      look(task / parts / shape.heads, head, part * QUERIES, k, v);
    });
  }

  void look(int64_t g, int64_t head, int64_t first, const float* k, const float* v) {
    thread_local std::unique_ptr<Attention> own;
    thread_local int64_t own_width, own_keys;
    if (!own || own_width != shape.h || own_keys != shape.l)
      own = std::make_unique<Attention>(own_width = shape.h, own_keys = shape.l);
    int64_t lanes = std::min(QUERIES, count - first);
    auto row = [&](int64_t lane) { return g * count + first + std::min(lane, lanes - 1); };
    float size = 1 / std::sqrt(float(shape.h));
    for (int64_t lane = 0; lane < QUERIES; ++lane)
      own->ask(lane, ys[0] + row(lane) * pace + head * shape.h, size);
    int64_t from = place(0, g, head / (shape.heads / shape.kv_heads));
    auto visible = [&](int64_t lane) -> const bool* {
      int64_t query = in.visible_queries == 1 ? (in.visible_rows == 1 ? 0 : g)
                                              : given(row(lane), in.visible_rows);
      return in.visible + query * shape.l;
    };
    own->look(k + from, v + from, in.visible_queries == 1, visible,
              [](Vec x) { return Format::round(x); });
    for (int64_t lane = 0; lane < lanes; ++lane)
      own->answer(lane, ys[1] + row(lane) * pace + head * shape.h);
  }
};
#endif
