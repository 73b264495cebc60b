// What JAX calls of body.h: packing weights, and running the blocks.

#include "body.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(JAXLLADA_HAS_TILES)

template <class Format>
ffi::Error pack(ffi::ThreadPool& pool, const typename Format::Number* weight, int64_t layers,
                int64_t k, int64_t columns, char* panels, float* scale) {
  constexpr int64_t PANEL = Format::PANEL;
  if (k > Format::WIDEST) return ffi::Error::Internal("rows are too wide for sums in int32");
  Team<NoHold> crew(pool);
  int64_t count = up(columns, PANEL) / PANEL;
  std::fill_n(scale, layers * count * PANEL, 0.0f);
  crew.share(layers * count, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      int64_t first = i % count * PANEL, there = std::min(PANEL, columns - first);
      const auto* from = weight + i / count * k * columns + first;
      char* panel = panels + i * Format::weight_bytes(k);
      Format::template put_columns<Format::WEIGHT>(from, k, columns, there, panel,
                                                   scale + i * PANEL);
    }
  });
  return ffi::Error::Success();
}

ffi::Error pack_columns(ffi::ThreadPool pool, ffi::AnyBuffer weight,
                        ffi::ResultBuffer<ffi::U8> panels, ffi::ResultBuffer<ffi::F32> scale) {
  auto shape = weight.dimensions();
  char* to = reinterpret_cast<char*>(panels->typed_data());
  if (weight.element_type() == ffi::F32)
    return pack<Bytes>(pool, weight.typed_data<float>(), shape[0], shape[1], shape[2], to,
                       scale->typed_data());
  return pack<Halves>(pool, static_cast<const uint16_t*>(weight.untyped_data()), shape[0], shape[1],
                      shape[2], to, scale->typed_data());
}

// Whether all that is given lies where it says.
bool fits(const Shape& shape, const Inputs& in, bool has_kept) {
  auto is_one_or = [](int64_t count, int64_t all) { return count == 1 || count == all; };
  int64_t end = in.origin + shape.r;
  bool is_whole = in.origin == 0 && in.first == 0 && in.last == shape.l;
  return shape.g > 0 && shape.s > 0 && shape.f > 0 && shape.d == shape.heads * shape.h &&
         shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 &&
         is_one_or(in.angle_rows, shape.g) && is_one_or(in.visible_rows, shape.g) &&
         is_one_or(in.visible_queries, shape.r) && in.origin >= 0 && end <= shape.l &&
         in.window >= in.origin && in.window + shape.s <= end && in.first >= in.origin &&
         in.last <= end && (has_kept || is_whole);
}

template <class Format>
void run(ffi::ThreadPool& pool, const Shape& shape, const Inputs& in, void* k, void* v, void* out) {
  using Number = typename Format::Number;
  Scratch::Loan scratch;
  Team<Tiles> crew(pool);
  Tiles tiles;
  if (!k) {
    int64_t kept = shape.layers * shape.g * shape.kv_heads * shape.l * shape.h;
    k = (*scratch).take<Number>(kept);
    v = (*scratch).take<Number>(kept);
  }
  Call<Format>(shape, in, static_cast<Number*>(k), static_cast<Number*>(v),
               static_cast<Number*>(out), crew, *scratch)
      .run();
}

ffi::Error body(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::F32> cos,
                ffi::Buffer<ffi::F32> sin, ffi::Buffer<ffi::PRED> visible,
                ffi::Buffer<ffi::S32> place, ffi::AnyBuffer attn_norm, ffi::AnyBuffer ff_norm,
                ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> out, ffi::RemainingRets kept,
                float eps, int64_t heads, int64_t kv_heads, int64_t ffn_width) {
  auto dims = x.dimensions();
  Shape shape{};
  shape.g = dims[0], shape.r = dims[1], shape.d = dims[2], shape.s = out->dimensions()[1];
  shape.l = visible.dimensions()[2];
  shape.f = ffn_width, shape.heads = heads, shape.kv_heads = kv_heads;
  shape.h = cos.dimensions().back() * 2, shape.layers = attn_norm.dimensions()[0];
  shape.eps = eps;
  Inputs in{};
  in.x = x.untyped_data(), in.cos = cos.typed_data(), in.sin = sin.typed_data();
  in.visible = visible.typed_data();
  in.angle_rows = cos.dimensions()[0];
  in.visible_rows = visible.dimensions()[0], in.visible_queries = visible.dimensions()[1];
  const int32_t* places = place.typed_data();
  in.origin = places[0], in.first = places[1], in.last = places[2], in.window = places[3];
  in.attn_norm = attn_norm.untyped_data(), in.ff_norm = ff_norm.untyped_data();
  if (in.first >= in.last) in.first = in.last = in.window;  // none is renewed
  bool has_kept = kept.size() == 2;
  if (!fits(shape, in, has_kept))
    return ffi::Error::Internal("the blocks' kernel was given shapes or positions that do not fit");
  bool is_wide = x.element_type() == ffi::F32;
  Weight* weights[] = {&in.q, &in.k, &in.v, &in.out, &in.gate, &in.up, &in.down};
  for (int i = 0; i < 7; ++i) {
    auto panels = rest.get<ffi::Buffer<ffi::U8>>(2 * i);
    auto scale = rest.get<ffi::Buffer<ffi::F32>>(2 * i + 1);
    if (!panels.has_value() || !scale.has_value())
      return ffi::Error::Internal("weights are missing");
    weights[i]->panels = reinterpret_cast<const char*>(panels->typed_data());
    weights[i]->scale = scale->typed_data();
    int64_t in_width = weights[i]->in = i == 6 ? shape.f : shape.d;
    weights[i]->count = scale->dimensions()[1] / (is_wide ? Bytes::PANEL : Halves::PANEL);
    int64_t bytes = is_wide ? Bytes::weight_bytes(in_width) : Halves::weight_bytes(in_width);
    if (int64_t(panels->element_count()) != shape.layers * weights[i]->count * bytes)
      return ffi::Error::Internal("weights were packed for another type or shape");
  }
  void *k = nullptr, *v = nullptr;
  if (has_kept) {
    k = kept.get<ffi::AnyBuffer>(0).value()->untyped_data();
    v = kept.get<ffi::AnyBuffer>(1).value()->untyped_data();
  }
  try {
    is_wide ? run<Bytes>(pool, shape, in, k, v, out->untyped_data())
            : run<Halves>(pool, shape, in, k, v, out->untyped_data());
  } catch (const std::bad_alloc&) {
    return ffi::Error::Internal("there is no memory for the blocks' kernel");
  }
  return ffi::Error::Success();
}

#else

ffi::Error missing() { return ffi::Error::Internal("this CPU has no matrix unit"); }
ffi::Error pack_columns(ffi::ThreadPool, ffi::AnyBuffer, ffi::ResultBuffer<ffi::U8>,
                        ffi::ResultBuffer<ffi::F32>) {
  return missing();
}
ffi::Error body(ffi::ThreadPool, ffi::AnyBuffer, ffi::Buffer<ffi::F32>, ffi::Buffer<ffi::F32>,
                ffi::Buffer<ffi::PRED>, ffi::Buffer<ffi::S32>, ffi::AnyBuffer, ffi::AnyBuffer,
                ffi::RemainingArgs, ffi::Result<ffi::AnyBuffer>, ffi::RemainingRets, float, int64_t,
                int64_t, int64_t) {
  return missing();
}

#endif

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxllada_pack, pack_columns,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()           // weight [layers, in, out]
                                  .Ret<ffi::Buffer<ffi::U8>>()     // panels
                                  .Ret<ffi::Buffer<ffi::F32>>());  // scale [layers, out, padded]

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxllada_body, body,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()          // x [G, R, D]
                                  .Arg<ffi::Buffer<ffi::F32>>()   // cosines [1 or G, R, H / 2]
                                  .Arg<ffi::Buffer<ffi::F32>>()   // sines
                                  .Arg<ffi::Buffer<ffi::PRED>>()  // visible [1 or G, 1 or R, L]
                                  .Arg<ffi::Buffer<ffi::S32>>()   // origin, first, last, window
                                  .Arg<ffi::AnyBuffer>()          // norm weights [layers, D]
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()                // seven packed weights, kept
                                  .Ret<ffi::AnyBuffer>()          // hidden rows [G, S, D]
                                  .RemainingRets()                // kept keys and values
                                  .Attr<float>("eps")
                                  .Attr<int64_t>("heads")
                                  .Attr<int64_t>("kv_heads")
                                  .Attr<int64_t>("ffn_width"));

// Whether there is a matrix unit for both types, and the system lets it be used.
extern "C" int jaxllada_body_is_possible() {
#if defined(JAXLLADA_HAS_TILES)
  return Tiles::are_allowed();
#else
  return 0;
#endif
}
