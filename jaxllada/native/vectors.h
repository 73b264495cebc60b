// Vectors of this CPU, and the exponential function on them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

constexpr int64_t LINE = 64;  // bytes of a cache line

typedef float Vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vec at(const float* from) { return *reinterpret_cast<const Vec*>(from); }

// exp(x) for x <= 0, to about 2 units in the last place; NaN stays NaN.
inline Vec exponential(Vec x) {
  x = x < -87.0f ? Vec{} - 87.0f : x;
  Ints whole = __builtin_convertvector(x * 1.442695041f - 0.5f, Ints);  // towards zero: rounds
  Vec count = __builtin_convertvector(whole, Vec);
  Vec rest = x - count * 0.693359375f + count * 2.12194440e-4f;  // ln 2 in two parts
  Vec sum = Vec{} + 1.0f / 5040;
  for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = sum * rest + factor;
  whole = (whole + 127) << 23;
  Vec power;
  std::memcpy(&power, &whole, sizeof power);
  return sum * power;
}

inline Vec silu(Vec x) {
  Vec small = exponential(x < 0 ? x : -x);
  return x * (x < 0 ? small : Vec{} + 1.0f) / (1.0f + small);
}

// Rounded to bfloat16, to even; what is not a number stays so.
inline Vec rounded_to_half(Vec x) {
  Ints bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fff + (bits >> 16 & 1)) & ~0xffff;
  Vec y;
  std::memcpy(&y, &bits, sizeof y);
  return x == x ? y : x;
}

// Sum of the squares of n numbers.
inline float squares(const float* x, int64_t n) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int j = 0; j < 4; ++j) sums[j] += at(x + i + j * LANES) * at(x + i + j * LANES);
  Vec all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0;
  for (int j = 0; j < LANES; ++j) sum += all[j];
  for (; i < n; ++i) sum += x[i] * x[i];
  return sum;
}
