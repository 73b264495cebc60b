// The output head of a sampler in one pass over its weight: for every row of hidden numbers the most
// likely token, its logit, and the sum of exp(logit - that logit). No logits are written.
//
// A thread takes a slice of the vocabulary, multiplies a few of its rows at a time with all hidden
// rows (products.h), and folds the products into what it has.
//
// Letters as in sampling/logits.py: N hidden rows, D model width, V vocabulary rows.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "products.h"
#include "xla/ffi/api/ffi.h"

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ffi = xla::ffi;

namespace {

constexpr int64_t SLICE = 1536;  // vocabulary rows a thread takes at a time

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
      total[i] = total[i] * std::exp(peak[i] - high) + other.total[i] * std::exp(other.peak[i] - high);
      peak[i] = high;
    }
  }
};

// One call, shared by the threads that work on it. It outlives the call: a thread may come late.
template <class Product>
struct Work {
  using Weight = typename Product::Weight;
  Product product;
  const Weight* weight;
  const float* bias;  // null: none
  float scale;
  int64_t v;
  std::vector<int32_t> hidden;  // tokens that are not counted, ascending
  int64_t excluded;             // a token that counts but is not chosen; -1: none

  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::condition_variable all_done;
  int64_t done = 0;
  Best best;
  std::vector<float> aside;  // logits of the excluded token

  Work(const Weight* weight, int64_t v, const Weight* x, int64_t n, int64_t d)
      : product(x, n, d), weight(weight), v(v), best(product.n), aside(product.n, -FLT_MAX) {}

  void help() {
    int64_t begin = next.fetch_add(SLICE);
    if (begin >= v) return;
    typename Product::Thread thread;
    Best own(product.n);
    std::vector<float> block(Product::ROWS * product.n);
    int64_t finished = 0;
    for (; begin < v; begin = next.fetch_add(SLICE)) {
      int64_t end = std::min(v, begin + SLICE);
      for (int64_t row = begin; row < end; row += Product::ROWS)
        read(row, std::min<int64_t>(Product::ROWS, end - row), block.data(), own);
      finished += end - begin;
    }
    std::lock_guard<std::mutex> lock(mutex);
    best.merge(own);
    done += finished;
    if (done == v) all_done.notify_all();
  }

  void read(int64_t first, int64_t rows, float* block, Best& own) {
    const Weight* from = weight + first * product.d;
    bool has_next = first + 2 * Product::ROWS <= v;
    const Weight* following = from + Product::ROWS * product.d;
    product.multiply(from, rows, has_next ? reinterpret_cast<const char*>(following) : nullptr, block);
    int64_t n = product.n;
    if (bias || scale != 1.0f)
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t i = 0; i < n; ++i)
          block[row * n + i] = (block[row * n + i] + (bias ? bias[first + row] : 0.0f)) * scale;
    if (excluded >= first && excluded < first + rows) {
      float* row = block + (excluded - first) * n;
      std::copy(row, row + n, aside.begin());
      std::fill(row, row + n, -INFINITY);
    }
    auto one = std::lower_bound(hidden.begin(), hidden.end(), first);
    for (; one != hidden.end() && *one < first + rows; ++one)
      std::fill_n(block + (*one - first) * n, n, -INFINITY);
    own.take(block, rows, first);
  }
};

template <class Product>
ffi::Error run(ffi::ThreadPool pool, const typename Product::Weight* weight, int64_t v,
               const typename Product::Weight* x, int64_t n, int64_t d,
               ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::S32> hidden, float scale,
               int64_t excluded, int32_t* token, float* peak, float* total) {
  auto work = std::make_shared<Work<Product>>(weight, v, x, n, d);
  work->bias = bias.element_count() ? bias.typed_data() : nullptr;
  work->scale = scale;
  work->excluded = excluded;
  work->hidden.assign(hidden.typed_data(), hidden.typed_data() + hidden.element_count());
  std::sort(work->hidden.begin(), work->hidden.end());
  int64_t slices = (v + SLICE - 1) / SLICE;
  for (int64_t i = 1; i < std::min(pool.num_threads(), slices); ++i)
    pool.Schedule([work] { work->help(); });
  work->help();
  std::unique_lock<std::mutex> lock(work->mutex);
  work->all_done.wait(lock, [&] { return work->done == v; });
  const Best& best = work->best;
  for (int64_t i = 0; i < n; ++i) {
    token[i] = best.token[i];
    peak[i] = best.peak[i];
    total[i] = best.total[i];
    if (excluded >= 0) total[i] += std::exp(work->aside[i] - best.peak[i]);
  }
  return ffi::Error::Success();
}

ffi::Error head(ffi::ThreadPool pool, ffi::AnyBuffer weight, ffi::AnyBuffer x,
                ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::S32> hidden,
                ffi::ResultBuffer<ffi::S32> token, ffi::ResultBuffer<ffi::F32> peak,
                ffi::ResultBuffer<ffi::F32> total, float scale, int64_t excluded) {
  int64_t v = weight.dimensions()[0], d = weight.dimensions()[1], n = x.dimensions()[0];
  if (weight.element_type() == ffi::F32)
    return run<Float32>(pool, weight.typed_data<float>(), v, x.typed_data<float>(), n, d, bias,
                        hidden, scale, excluded, token->typed_data(), peak->typed_data(),
                        total->typed_data());
#if defined(__AMX_BF16__)
  using Bits = const uint16_t*;
  return run<BFloat16>(pool, static_cast<Bits>(weight.untyped_data()), v,
                       static_cast<Bits>(x.untyped_data()), n, d, bias, hidden, scale, excluded,
                       token->typed_data(), peak->typed_data(), total->typed_data());
#else
  return ffi::Error::Internal("the head kernel was built for float32 alone");
#endif
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxllada_head, head,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()          // weight [V, D]
                                  .Arg<ffi::AnyBuffer>()          // hidden rows [N, D]
                                  .Arg<ffi::Buffer<ffi::F32>>()   // bias [V] or [0]
                                  .Arg<ffi::Buffer<ffi::S32>>()   // tokens that are not counted
                                  .Ret<ffi::Buffer<ffi::S32>>()   // token [N]
                                  .Ret<ffi::Buffer<ffi::F32>>()   // its logit
                                  .Ret<ffi::Buffer<ffi::F32>>()   // sum of exp(logit - its logit)
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("excluded"));

// Whether bfloat16 is done: the build knows the matrix unit, and the system lets it be used.
extern "C" int jaxllada_head_has_bfloat16() {
#if defined(__AMX_BF16__)
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return 0;
#endif
}
