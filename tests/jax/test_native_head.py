"""The C++ head kernel: float64 products as oracle, the sampler and scores with and without it."""

import ctypes
import dataclasses
import os
import shutil
import stat

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxllada.common.errors import UserError
from jaxllada.common.policy import Policy
from jaxllada.convert import load
from jaxllada.diffusion.token_nats import token_nats
from jaxllada.native import blocks, build
from jaxllada.native import head as native
from jaxllada.sampling import generate, predict
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.logits import is_plain
from tests.sampling_cases import CONFIG, PROMPTS, VISIBLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build._compiler() is None, reason="there is no C++ compiler"),
]


def forget():
    for cached in (build.library, native._kernel, native._has_tiles, blocks._kernel):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    monkeypatch.setenv("JAXLLADA_NATIVE", "1")
    forget()
    yield
    forget()


def case(rows, width, vocabulary, dtype=np.float32):
    draw = np.random.default_rng(rows * 1000 + width)
    # Logits of about 3, as models have them.
    weight = (draw.normal(size=(vocabulary, width)) * 3 / np.sqrt(width)).astype(dtype)
    x = draw.normal(size=(rows, width)).astype(dtype)
    bias = draw.normal(size=vocabulary).astype(np.float32)
    return weight, x, bias


def packed(weight):
    if not native.can_pack_head(jnp.asarray(weight)):
        pytest.skip("this CPU has no matrix unit")
    return native.pack_head(jnp.asarray(weight))


FORMS = {"as it is": lambda weight: None, "packed": packed}
as_is_and_packed = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def oracle(weight, x, bias=0.0, scale=1.0, hidden=(), excluded=-1):
    logits = (x.astype(np.float64) @ weight.astype(np.float64).T + bias) * scale
    logits[:, list(hidden)] = -np.inf
    allowed = logits.copy()
    if excluded >= 0:
        allowed[:, excluded] = -np.inf
    token = allowed.argmax(axis=1)
    logit = allowed.max(axis=1)
    return token, logit, np.exp(logits - logit[:, None]).sum(axis=1)


def check(found, expected):
    token, logit, total = expected
    np.testing.assert_array_equal(found.token, token)
    np.testing.assert_allclose(found.logit, logit, rtol=2e-6, atol=2e-5)
    # A total is exp of differences of logits, whose error is absolute.
    np.testing.assert_allclose(found.total, total, rtol=1e-4)


# Around the sizes of vectors, tiles and slices: 12 and 32 tokens, 8, 16 and 32 rows, 1,536 tokens.
SHAPES = [(1, 16, 5), (4, 64, 1536), (7, 33, 1537), (16, 96, 3100), (17, 448, 4000), (33, 32, 95),
          (48, 64, 6151), (100, 160, 1547)]  # fmt: skip


@as_is_and_packed
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_float64(shape, form):
    weight, x, bias = case(*shape)
    assert native.has_kernel(jnp.asarray(weight))
    run = jax.jit(native.likeliest, static_argnames=("scale", "excluded"))
    other = form(weight)
    check(run(weight, x, packed=other), oracle(weight, x))
    first = int(oracle(weight, x)[0][0])
    hidden, excluded = [0, first], (first + 2) % shape[2]
    options = {"scale": 0.3, "hidden": jnp.array(hidden), "excluded": excluded}
    found = run(weight, x, bias, packed=other, **options)
    check(found, oracle(weight, x, bias, 0.3, hidden, excluded))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1] % native.UNIT == 0])
def test_products_in_bfloat16_are_those_of_float64(shape):
    weight, x, bias = case(*shape, ml_dtypes.bfloat16)
    if not native.has_kernel(jnp.asarray(weight)):
        pytest.skip("this CPU does not multiply bfloat16 in hardware")
    excluded = int(oracle(weight, x, bias)[0][0])
    found = native.likeliest(weight, x, jnp.asarray(bias), excluded=excluded)
    check(found, oracle(weight, x, bias, excluded=excluded))


@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_other_processors_get_the_same(cpu, monkeypatch, tmp_path):
    needed = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}[cpu]
    info = build._cpu().decode()
    if needed not in info:
        pytest.skip(f"this CPU has no {needed}")
    compiler = tmp_path / "compiler"
    arguments = '"${@/-march=native/-march=' + cpu + '}"'
    compiler.write_text(f"#!/bin/bash\nexec {build._compiler()} {arguments}\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    own = build.library("head")
    assert own is not None
    assert not own.jaxllada_head_has_tiles()
    target = f"jaxllada_head_{cpu}"
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(own.jaxllada_head), platform="cpu")
    monkeypatch.setattr(native, "TARGET", target)
    for shape in SHAPES:
        weight, x, bias = case(*shape)
        excluded = int(oracle(weight, x, bias)[0][0])
        found = native.likeliest(weight, x, jnp.asarray(bias), excluded=excluded)
        check(found, oracle(weight, x, bias, excluded=excluded))


@as_is_and_packed
def test_the_lowest_token_wins_a_tie_wherever_threads_met_it(form):
    weight, x, _ = case(20, 64, 9000)
    best = oracle(weight, x)[0][3]
    places = [8999, best, 1535, 1536, 7]
    weight[places] = 2 * weight[best]
    other = form(weight)
    for _ in range(20):
        found = native.likeliest(jnp.asarray(weight), jnp.asarray(x), packed=other)
        assert found.token[3] == min(places)


@as_is_and_packed
def test_what_is_not_a_number_stays_so(form):
    weight, x, _ = case(5, 64, 2000)
    expected = native.likeliest(jnp.asarray(weight), jnp.asarray(x), packed=form(weight))
    x[2, 7] = np.nan
    found = native.likeliest(jnp.asarray(weight), jnp.asarray(x), packed=form(weight))
    np.testing.assert_array_equal(np.isnan(found.total), np.arange(5) == 2)
    for part, own in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.delete(part, 2), np.delete(own, 2), rtol=1e-5)
    x[2, 7] = 0
    weight[77, 3] = np.nan
    found = native.likeliest(jnp.asarray(weight), jnp.asarray(x), packed=form(weight))
    assert np.isnan(found.total).all()


@as_is_and_packed
def test_logits_far_apart_neither_overflow_nor_vanish(form):
    weight, x, _ = case(3, 32, 1600)
    large = jnp.asarray(weight) * 1e4
    found = native.likeliest(large, jnp.asarray(x), packed=form(large))
    np.testing.assert_allclose(found.total, 1, rtol=1e-6)
    excluded = int(oracle(weight, x)[0][1])
    found = native.likeliest(large, jnp.asarray(x), excluded=excluded, packed=form(large))
    assert np.isinf(found.total[1])


@as_is_and_packed
def test_words_and_rows_of_zeros_have_logits_of_zero(form):
    weight, x, _ = case(5, 64, 2000)
    weight[100:150] = x[3] = 0
    check(native.likeliest(weight, x, packed=form(weight)), oracle(weight, x))
    weight[:] = 0
    found = native.likeliest(weight, x, packed=form(weight))
    check(found, (np.zeros(5), np.zeros(5), np.full(5, 2000)))


def test_of_the_products_of_bytes_only_that_of_the_lowest_is_left_out():
    # The largest number makes the scale one: 24 bits of a number are three bytes of its own.
    largest, bytes_of = 127 * 65536, [65536, 256, 1, -1]
    x = np.zeros((4, 70), np.float32)
    weight = np.zeros((4, 70), np.float32)
    x[:, 1] = weight[:, 2] = largest
    x[:, 68] = weight[:, 68] = bytes_of
    form = packed(weight)
    for word, own in enumerate(bytes_of):
        others = jnp.array([other for other in range(4) if other != word], jnp.int32)
        found = native.likeliest(jnp.asarray(weight), jnp.asarray(x), packed=form, hidden=others)
        known = np.array([abs(own * other) > 1 for other in bytes_of])
        expected = own * np.array(bytes_of)
        np.testing.assert_array_equal(found.logit[known], expected[known])


@as_is_and_packed
def test_numbers_of_another_size_are_as_exact(form):
    """Each word and each row has a size of its own, and one channel is far larger than others."""
    weight, x, _ = case(20, 160, 3000)
    weight *= np.float32(10.0) ** -(np.arange(3000) % 9)[:, None]
    x *= np.float32(10.0) ** (np.arange(20) % 5)[:, None] / 1e4
    x[:, 5] *= 300
    weight[:, 5] /= 300
    check(native.likeliest(weight, x, packed=form(weight)), oracle(weight, x))


@as_is_and_packed
def test_the_same_call_gives_the_same_bits_whatever_rows_are_beside(form):
    weight, x, bias = case(33, 96, 5000)
    other = form(weight)
    run = jax.jit(native.likeliest)
    expected = run(weight, x, bias, packed=other)
    for _ in range(5):
        # Parts of a total are added in the order in which threads come.
        found = run(weight, x, bias, packed=other)
        np.testing.assert_array_equal(found.token, expected.token)
        np.testing.assert_array_equal(found.logit, expected.logit)
        np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)
    alone = run(weight, x[20:21], bias, packed=other)
    assert (alone.token, alone.logit) == (expected.token[20], expected.logit[20])


PLAIN = [
    {}, {"selection": "threshold:0.3"}, {"remasking": "random"}, {"cache": "dual"},
    {"logits_eos_inf": True, "suppress_tokens": (3, 9)},
    {"compat": "official-2025", "selection": "factor:1.0"},
]  # fmt: skip
OTHERS = [
    {"temperature": 0.7}, {"cfg_scale": 1.0}, {"selection": "margin"}, {"selection": "entropy"},
    {"begin_suppress_tokens": (3,)}, {"selection": "credit:0.5"}, {"top_k": 4, "temperature": 0.5},
    {"compat": "official-2025", "confidence_eos_eot_inf": True, "eot_token_id": 29},
    {"selection": "dream:entropy"}, {"smoothing": "soft"},
    {"end_think_logit_boost": 5.0, "end_think_token_ids": (4,)},
]  # fmt: skip


def traced(dense, options):
    """The record of a run, and how often the kernel was put into a program."""
    calls = []

    def counted(head, *rest):
        calls.append(head)
        assert (head.packed is not None) == native.can_pack_head(head.weight)
        return read(head, *rest)

    read = predict.read_at_once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "read_at_once", counted)
        generate.advance.clear_cache()
        config = dataclasses.replace(CONFIG, **options)
        trace = generate.sample_trace(dense, PROMPTS, config, VISIBLE, jax.random.key(0))
    return trace, len(calls)


@pytest.fixture(scope="module")
def model(sharp):
    return load(sharp)


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_sampling_with_the_kernel_commits_the_same_tokens_in_the_same_order(
    model, options, monkeypatch
):
    found, calls = traced(model, options)
    assert calls
    monkeypatch.setenv("JAXLLADA_NATIVE", "0")
    forget()
    expected, calls = traced(model, options)
    assert not calls
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.order, expected.order)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-4)


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_calls_that_need_logits_are_not_plain(model, options):
    config = dataclasses.replace(CONFIG, **options)
    nothing = Inputs._make([None] * len(Inputs._fields))
    inputs = nothing._replace(unsure=np.array(config.begin_suppress_tokens))
    assert not is_plain(inputs, Policy.of(config, model.config, config.block_length))


def test_a_model_of_another_type_goes_without():
    assert not native.has_kernel(jnp.zeros((8, 32), jnp.float16))
    assert not native.has_kernel(jnp.zeros((8, 33), jnp.bfloat16))
    assert not native.can_pack_head(jnp.zeros((8, 32), jnp.float16))
    assert not native.can_pack_head(jnp.zeros((8, 32), jnp.bfloat16))


def test_several_devices_go_without(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not native.has_kernel(jnp.zeros((8, 32)))
    assert not native.can_pack_head(jnp.zeros((8, 32)))


def test_zero_does_without_and_other_values_are_refused(monkeypatch):
    monkeypatch.setenv("JAXLLADA_NATIVE", "0")
    assert build.library("head") is None
    forget()
    monkeypatch.setenv("JAXLLADA_NATIVE", "yes")
    with pytest.raises(UserError, match="JAXLLADA_NATIVE=yes must be 1"):
        build.library("head")


def test_without_a_compiler_nothing_is_said(monkeypatch, capfd):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.library("head") is None
    assert not native.has_kernel(jnp.zeros((8, 32)))
    assert not native.can_pack_head(jnp.zeros((8, 32)))
    assert capfd.readouterr().err == ""


def test_a_compiler_that_fails_is_told_once(monkeypatch, tmp_path, capfd):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'head.cc:1: error: no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    for _ in range(2):
        assert build.library("head") is None
    told = capfd.readouterr().err
    assert told.count("no such header") == 1
    assert "XLA does its work" in told
    assert not list((build.Path(os.environ["JAXLLADA_CACHE"]) / "native").glob("tmp*"))


def test_a_kernel_is_built_once_and_a_folder_that_cannot_be_written_is_survived(
    monkeypatch, tmp_path, capfd
):
    monkeypatch.setenv("JAXLLADA_CACHE", str(tmp_path / "cache"))
    assert isinstance(build.library("head"), ctypes.CDLL)
    build.library.cache_clear()
    assert isinstance(build.library("head"), ctypes.CDLL)
    assert capfd.readouterr().err.count("building the head kernel") == 1
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file, not a folder")
    build.library.cache_clear()
    assert build.library("head") is None
    assert "XLA does its work" in capfd.readouterr().err


@as_is_and_packed
@pytest.mark.parametrize("has_bias", [False, True])
def test_nats_of_tokens_are_those_of_float64(has_bias, form):
    weight, x, bias = case(40, 64, 3000)
    bias = bias if has_bias else None
    token, logit, total = oracle(weight, x, 0.0 if bias is None else bias)
    logits = x.astype(np.float64) @ weight.astype(np.float64).T + (bias if has_bias else 0.0)
    targets = np.where(np.arange(40) % 3 == 0, token, np.arange(40) * 7)
    asked = np.arange(40) % 5 != 4
    found = token_nats(
        jnp.asarray(x), jnp.asarray(weight), jnp.asarray(targets), jnp.asarray(asked),
        head_bias=None if bias is None else jnp.asarray(bias), packed=form(weight), chunk=16,
    )  # fmt: skip
    best = np.log(total)
    nll = best + logit - logits[np.arange(40), targets]
    np.testing.assert_allclose(found.nll, np.where(asked, nll, 0), atol=1e-5)
    np.testing.assert_allclose(found.best, np.where(asked, best, 0), atol=1e-5)
    np.testing.assert_array_equal(found.is_best, asked & (targets == token))
    assert (found.is_best & (np.arange(40) % 3 == 0)).sum() > 5
