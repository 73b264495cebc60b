// The output head of a sampler in one pass over its weight: for every row of hidden numbers the
// most likely token, its logit, and the sum of exp(logit - that logit). No logits are written.
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
#include <memory>
#include <mutex>
#include <vector>

#include "best.h"
#include "products.h"
#include "team.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int64_t SLICE = 1536;  // vocabulary rows a thread takes at a time

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

  template <class Number>
  Work(const Weight* weight, int64_t v, const Number* x, int64_t n, int64_t d)
      : product(x, n, d), weight(weight), v(v), best(product.n), aside(product.n, -FLT_MAX) {}

  void help() {
    int64_t begin = next.fetch_add(SLICE);
    if (begin >= v) return;
    typename Product::Thread thread;
    Best own(product.n);
    // Products may come one call late: they are read one after the next was asked for.
    std::vector<float> blocks[2];
    for (auto& block : blocks) block.resize(Product::ROWS * product.n);
    int64_t finished = 0, calls = 0, last = -1;
    auto rows_at = [&](int64_t row) { return std::min<int64_t>(Product::ROWS, v - row); };
    for (; begin < v; begin = next.fetch_add(SLICE)) {
      int64_t end = std::min(v, begin + SLICE);
      for (int64_t row = begin; row < end; row += Product::ROWS) {
        multiply(thread, row, rows_at(row), blocks[calls++ % 2].data());
        if (last >= 0) read(last, rows_at(last), blocks[calls % 2].data(), own);
        last = row;
      }
      finished += end - begin;
    }
    thread.finish();
    read(last, rows_at(last), blocks[(calls - 1) % 2].data(), own);
    std::lock_guard<std::mutex> lock(mutex);
    best.merge(own);
    done += finished;
    if (done == v) all_done.notify_all();
  }

  void multiply(typename Product::Thread& thread, int64_t first, int64_t rows, float* block) {
    bool has_next = first + 2 * Product::ROWS <= v;
    const Weight* next = has_next ? product.row_of(weight, first + Product::ROWS) : nullptr;
    product.multiply(thread, product.row_of(weight, first), rows,
                     reinterpret_cast<const char*>(next), block);
  }

  void read(int64_t first, int64_t rows, float* block, Best& own) {
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

template <class Product, class Number>
ffi::Error run(ffi::ThreadPool pool, const typename Product::Weight* weight,
               const float* weight_scale, int64_t v, const Number* x, int64_t n, int64_t d,
               ffi::Buffer<ffi::F32> bias, ffi::Buffer<ffi::S32> hidden, float scale,
               int64_t excluded, int32_t* token, float* peak, float* total) {
  if (n == 0) return ffi::Error::Success();
  auto work = std::make_shared<Work<Product>>(weight, v, x, n, d);
  work->product.take(weight, weight_scale);
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
    return run<Float32>(pool, weight.typed_data<float>(), nullptr, v, x.typed_data<float>(), n, d,
                        bias, hidden, scale, excluded, token->typed_data(), peak->typed_data(),
                        total->typed_data());
#if defined(JAXLLADA_HAS_TILES)
  if (weight.element_type() != ffi::BF16 || x.element_type() != ffi::BF16 || d % 32)
    return ffi::Error::Internal("the head kernel takes bfloat16 rows of whole units of 32");
  using Bits = const uint16_t*;
  return run<BFloat16>(pool, static_cast<Bits>(weight.untyped_data()), nullptr, v,
                       static_cast<Bits>(x.untyped_data()), n, d, bias, hidden, scale, excluded,
                       token->typed_data(), peak->typed_data(), total->typed_data());
#else
  return ffi::Error::Internal("the head kernel was built for float32 alone");
#endif
}

#if defined(JAXLLADA_HAS_TILES)
ffi::Error packed_head(ffi::ThreadPool pool, ffi::Buffer<ffi::U8> panels,
                       ffi::Buffer<ffi::F32> scale,
                       ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> bias,
                       ffi::Buffer<ffi::S32> hidden, ffi::ResultBuffer<ffi::S32> token,
                       ffi::ResultBuffer<ffi::F32> peak, ffi::ResultBuffer<ffi::F32> total,
                       float scale_of_logits, int64_t excluded, int64_t tokens) {
  return run<PackedFloat32>(pool, reinterpret_cast<const char*>(panels.typed_data()),
                            scale.typed_data(), tokens, x.typed_data(), x.dimensions()[0],
                            x.dimensions()[1], bias, hidden, scale_of_logits, excluded,
                            token->typed_data(), peak->typed_data(), total->typed_data());
}

ffi::Error pack_head(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> weight,
                     ffi::ResultBuffer<ffi::U8> panels, ffi::ResultBuffer<ffi::F32> scale) {
  int64_t v = weight.dimensions()[0], d = weight.dimensions()[1], unit = Bytes::PANEL;
  char* to = reinterpret_cast<char*>(panels->typed_data());
  if (d > Bytes::WIDEST) return ffi::Error::Internal("rows are too wide for sums in int32");
  Team<NoHold> crew(pool);
  crew.share(up(v, unit), [&](int64_t from, int64_t end) {
    const std::vector<float> nothing(d, 0.0f);
    for (int64_t row = from; row < end; ++row)
      scale->typed_data()[row] =
          Bytes::put_row<Bytes::WEIGHT>(row < v ? weight.typed_data() + row * d : nothing.data(), d,
                         to + row / unit * Bytes::weight_bytes(d), row % unit);
  });
  return ffi::Error::Success();
}
#else
ffi::Error missing() { return ffi::Error::Internal("this CPU has no matrix unit"); }
ffi::Error packed_head(ffi::ThreadPool, ffi::Buffer<ffi::U8>, ffi::Buffer<ffi::F32>,
                       ffi::Buffer<ffi::F32>, ffi::Buffer<ffi::F32>, ffi::Buffer<ffi::S32>,
                       ffi::ResultBuffer<ffi::S32>, ffi::ResultBuffer<ffi::F32>,
                       ffi::ResultBuffer<ffi::F32>, float, int64_t, int64_t) {
  return missing();
}
ffi::Error pack_head(ffi::ThreadPool, ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::U8>,
                     ffi::ResultBuffer<ffi::F32>) {
  return missing();
}
#endif

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

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxllada_packed_head, packed_head,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U8>>()    // panels of the weight
                                  .Arg<ffi::Buffer<ffi::F32>>()   // scale of its rows
                                  .Arg<ffi::Buffer<ffi::F32>>()   // hidden rows [N, D]
                                  .Arg<ffi::Buffer<ffi::F32>>()   // the rest as above
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("excluded")
                                  .Attr<int64_t>("tokens"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxllada_pack_head, pack_head,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()    // weight [V, D]
                                  .Ret<ffi::Buffer<ffi::U8>>()     // panels
                                  .Ret<ffi::Buffer<ffi::F32>>());  // scale of its rows

// Whether there is a matrix unit, and the system lets it be used.
extern "C" int jaxllada_head_has_tiles() {
#if defined(JAXLLADA_HAS_TILES)
  return Tiles::are_allowed();
#else
  return 0;
#endif
}
