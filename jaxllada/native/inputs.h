// What a call of body.h is given. Letters as there.
#pragma once

#include <cstdint>

// A weight of all layers, as it is packed: [layers, panels, panel bytes], [layers, columns].
struct Weight {
  const char* panels;
  const float* scale;
  int64_t in, count;  // width of a row that goes in, panels of a layer

  template <class Format>
  const char* at(int64_t layer, int64_t panel) const {
    return panels + (layer * count + panel) * Format::weight_bytes(in);
  }
  template <class Format>
  const float* scale_at(int64_t layer, int64_t panel) const {
    return scale + (layer * count + panel) * Format::PANEL;
  }
};

struct Shape {
  int64_t g, r, l, s, d, h, f, heads, kv_heads, layers;
  float eps;
};

struct Inputs {
  const void* x;           // [G, R, D]
  const float *cos, *sin;  // [1 or G, R, H / 2]
  const bool* visible;     // [1 or G, 1 or R, L]
  int64_t angle_rows, visible_rows, visible_queries;
  int64_t origin;          // position of the first row that is given
  int64_t first, last;     // positions whose keys and values are renewed
  int64_t window;          // first position that comes out
  const void *attn_norm, *ff_norm;  // [layers, D]
  Weight q, k, v, out, gate, up, down;
};
