// Attention of a few queries to all keys of one head, in float32.
//
// Vectors lie along the queries: each is a lane, so the softmax needs no sums across lanes.
#pragma once

#include <algorithm>
#include <cfloat>
#include <vector>

#include "vectors.h"

// Queries that are taken at once: two vectors.
constexpr int64_t QUERIES = 2 * LANES;
// Score of a hidden key: finite, so that a query that sees nothing gives an average.
constexpr float NEVER = -0.7f * FLT_MAX;

class Attention {
 public:
  // Numbers of a head, keys.
  Attention(int64_t width, int64_t keys)
      : width(width), keys(keys), query(width * QUERIES), score(keys * QUERIES),
        mixed(width * QUERIES) {}

  // Lane `lane` asks with q [width]; lanes that are not set ask anything finite.
  void ask(int64_t lane, const float* q, float scale) {
    for (int64_t i = 0; i < width; ++i) query[i * QUERIES + lane] = q[i] * scale;
  }

  // Scores from k [keys, width], softmax, and the mean of v [keys, width]. `visible(lane)` gives
  // the keys that a lane sees, null for all; weights and means are rounded.
  template <class Visible, class Round>
  void look(const float* k, const float* v, bool is_alike, const Visible& visible,
            const Round& round) {
    constexpr int64_t AT_ONCE = 6;
    int64_t j = 0;
    for (; j + AT_ONCE <= keys; j += AT_ONCE) scores<AT_ONCE>(k + j * width, &score[j * QUERIES]);
    for (; j < keys; ++j) scores<1>(k + j * width, &score[j * QUERIES]);
    hide(is_alike, visible);
    weigh(round);
    int64_t h = 0;
    for (; h + 8 <= width; h += 8) mix<8>(v + h, &mixed[h * QUERIES]);
    for (; h < width; ++h) mix<1>(v + h, &mixed[h * QUERIES]);
    for (h = 0; h < width * QUERIES; h += LANES) {
      Vec mean = round(at(&mixed[h]) / at(&total[h % QUERIES]));
      std::memcpy(&mixed[h], &mean, sizeof mean);
    }
  }

  // What lane `lane` found.
  void answer(int64_t lane, float* out) const {
    for (int64_t i = 0; i < width; ++i) out[i] = mixed[i * QUERIES + lane];
  }

 private:
  int64_t width, keys;
  std::vector<float> query, score, mixed;  // [width or keys, QUERIES]
  float total[QUERIES];

  template <int count>
  void scores(const float* k, float* to) const {
    Vec sums[count][2] = {};
    for (int64_t i = 0; i < width; ++i) {
      Vec q0 = at(&query[i * QUERIES]), q1 = at(&query[i * QUERIES + LANES]);
      for (int j = 0; j < count; ++j) {
        sums[j][0] += k[j * width + i] * q0;
        sums[j][1] += k[j * width + i] * q1;
      }
    }
    std::memcpy(to, sums, sizeof sums);
  }

  template <class Visible>
  void hide(bool is_alike, const Visible& visible) {
    for (int64_t lane = 0; lane < (is_alike ? 1 : QUERIES); ++lane) {
      const bool* sees = visible(lane);
      for (int64_t j = 0; sees && j < keys; ++j)
        if (!sees[j]) std::fill_n(&score[j * QUERIES + lane], is_alike ? QUERIES : 1, NEVER);
    }
  }

  template <class Round>
  void weigh(const Round& round) {
    for (int64_t first = 0; first < QUERIES; first += LANES) {
      Vec high = at(&score[first]), sum = {};
      for (int64_t j = 1; j < keys; ++j) {
        Vec s = at(&score[j * QUERIES + first]);
        high = s > high ? s : high;
      }
      for (int64_t j = 0; j < keys; ++j) {
        float* place = &score[j * QUERIES + first];
        Vec weight = exponential(at(place) - high);
        sum += weight;
        weight = round(weight);
        std::memcpy(place, &weight, sizeof weight);
      }
      std::memcpy(&total[first], &sum, sizeof sum);
    }
  }

  template <int count>
  void mix(const float* v, float* to) const {
    Vec sums[count][2] = {};
    for (int64_t j = 0; j < keys; ++j) {
      Vec w0 = at(&score[j * QUERIES]), w1 = at(&score[j * QUERIES + LANES]);
      for (int h = 0; h < count; ++h) {
        sums[h][0] += v[j * width + h] * w0;
        sums[h][1] += v[j * width + h] * w1;
      }
    }
    std::memcpy(to, sums, sizeof sums);
  }
};
