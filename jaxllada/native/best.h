// Folds logits into the most likely token of every row, and the sum of exp(logit - its logit).
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

// What is known of N rows, padded to whole vectors, after some of the vocabulary.
struct Best {
  std::vector<float> peak, total;
  std::vector<int32_t> token;
  explicit Best(int64_t n) : peak(n, -FLT_MAX), total(n, 0.0f), token(n, 0) {}

  // Takes a block of logits [rows, n] of the tokens from `first` on. The lowest token wins a tie.
  void take(const float* block, int64_t rows, int64_t first) {
    int64_t n = peak.size();
    for (int64_t i = 0; i < n; i += LANES) {
      Vec old = at(&peak[i]), high = old;
      Ints best = *reinterpret_cast<const Ints*>(&token[i]);
      for (int64_t v = 0; v < rows; ++v) {
        Vec logit = at(block + v * n + i);
        Ints wins = logit > high;
        high = wins ? logit : high;
        best = wins ? Ints{} + static_cast<int32_t>(first + v) : best;
      }
      Vec sum = at(&total[i]) * exponential(old - high);
      for (int64_t v = 0; v < rows; ++v) sum += exponential(at(block + v * n + i) - high);
      std::memcpy(&peak[i], &high, sizeof high);
      std::memcpy(&total[i], &sum, sizeof sum);
      std::memcpy(&token[i], &best, sizeof best);
    }
  }

  void merge(const Best& other) {
    for (size_t i = 0; i < peak.size(); ++i) {
      float high = std::max(peak[i], other.peak[i]);
      bool wins = other.peak[i] > peak[i] ||
                  (other.peak[i] == peak[i] && other.token[i] < token[i]);
      if (wins) token[i] = other.token[i];
      total[i] = total[i] * std::exp(peak[i] - high) +
                 other.total[i] * std::exp(other.peak[i] - high);
      peak[i] = high;
    }
  }
};
