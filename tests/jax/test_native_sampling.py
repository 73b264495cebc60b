"""The sampler with and without the kernel of all blocks, and which models go without it."""

import dataclasses
import gc
import re
import stat
import weakref

import jax
import numpy as np
import pytest

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.presets import preset
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.convert import load
from jaxllada.models import packed
from jaxllada.models.family import abstract_model
from jaxllada.models.lora import add_adapters
from jaxllada.models.packed import PackedBlocks, can_pack
from jaxllada.native import blocks as native
from jaxllada.native import build, head
from jaxllada.sampling import generate, predict
from tests.jax.packed_models import close, forget, inputs, make, oracle, shapes, turned_on
from tests.sampling_cases import PROMPTS, VISIBLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(build._compiler() is None, reason="there is no C++ compiler"),
]


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    yield from turned_on(monkeypatch)


@pytest.fixture(scope="module")
def model(sharp):
    return load(sharp)


PLAN = {"steps": 12, "gen_length": 24, "block_length": 8}
GUIDED = {"cfg_scale": 0.7}
RULES = [
    {"selection": "threshold:0.3"} | GUIDED,
    {"smoothing": "soft", "canvas": "adaptive:8,8", "gen_length": 32},
    {"cache": "prefix:3", "selection": "factor:1.0"} | GUIDED,
    {"cache": "dual", "smoothing": "soft"} | GUIDED,
    {"cache": "vicinity:20,5,1,4", "selection": "threshold:0.5"},
    {"cache": "block_causal", "attention": "block_causal"},
]  # fmt: skip


def traced(model, options, prompt=PROMPTS, seen=VISIBLE, pieces=None):
    """The record of a run, and how often each kernel was put into a program."""
    calls = {"blocks": 0, "head": 0}

    def counted(name, function):
        def count(*given, **options):
            calls[name] += 1
            return function(*given, **options)

        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "run", counted("blocks", native.run))
        patch.setattr(predict, "read_at_once", counted("head", predict.read_at_once))
        generate.advance.clear_cache()
        config = SamplingConfig(**PLAN | options)
        key = jax.random.key(0)
        run = generate.sample_stepwise(model, prompt, config, seen, key, steps_per_piece=pieces)
        return list(run), calls


def without(monkeypatch):
    monkeypatch.setenv("JAXLLADA_NATIVE", "0")
    forget()


def assert_same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.order, expected.order)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=2e-4)


@pytest.mark.parametrize("options", RULES, ids=str)
def test_sampling_with_kernels_commits_the_same_tokens_in_the_same_order(
    model, options, monkeypatch
):
    (*_, found), calls = traced(model, options)
    assert calls["blocks"]
    without(monkeypatch)
    (*_, expected), calls = traced(model, options)
    assert not any(calls.values())
    assert_same(found, expected)


def test_gaps_of_prompts_are_filled_with_the_same_tokens(model, monkeypatch):
    gaps = PROMPTS.copy()
    gaps[:, -3] = gaps[0, 1] = model.config.mask_id
    options = {"infill": True, "gen_length": 8, "steps": 4, "attention": "block_causal"}
    (*_, found), calls = traced(model, options, gaps)
    assert calls["blocks"]
    assert calls["head"]
    without(monkeypatch)
    (*_, expected), _ = traced(model, options, gaps)
    np.testing.assert_array_equal(found.prompt, expected.prompt)
    assert_same(found, expected)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_pieces_with_kernels_are_those_of_one_run(model, cache, monkeypatch):
    pieces, calls = traced(model, {"cache": cache}, pieces=5)
    assert calls["blocks"]
    assert len(pieces) > 2
    (*_, alone), _ = traced(model, {"cache": cache}, PROMPTS[1:, 3:], VISIBLE[1:, 3:])
    np.testing.assert_array_equal(alone.tokens[0], pieces[-1].tokens[1])
    without(monkeypatch)
    (*_, whole), _ = traced(model, {"cache": cache})
    assert_same(pieces[-1], whole)


def test_a_cache_that_looks_into_blocks_goes_without(model):
    _, calls = traced(model, {"cache": "dllm:4,3,0.25"})
    assert not calls["blocks"]
    assert calls["head"]


def test_the_kernel_writes_the_memory_in_place(model, monkeypatch):
    programs = []
    advance = generate.advance

    def record(*given, policy):
        programs.append((advance.lower(*given, policy=policy).compile().as_text(), given[3].memory))
        return advance(*given, policy=policy)

    monkeypatch.setattr(generate, "advance", record)
    config = SamplingConfig(**PLAN, cache="dual")
    list(generate.sample_stepwise(model, PROMPTS[:1], config, steps_per_piece=None))
    text, memory = programs[0]
    shape = ",".join(str(size) for size in memory.kept.k.shape)
    call = re.search(rf"f32\[{shape}\].* custom-call\(.*jaxllada_body.*", text)
    assert call is not None
    assert "output_to_operand_aliasing={{1}: (" in call[0]
    assert not re.search(rf"f32\[{shape}\]\S* copy\(", text)


REFUSED = {
    "feed-forward parts of another form": {"block_type": "sequential", "activation_type": "gelu"},
    "another activation": {"activation_type": "gelu"},
    "a norm with a mean": {"layer_norm_type": "default"},
    "a norm of Gemma": {"layer_norm_type": "gemma_rms"},
    "norms without weights": {"layer_norm_with_affine": False},
    "norms with a bias": {"bias_for_layer_norm": True},
    "norms of queries and keys": {"attention_layer_norm": True},
    "biases": {"include_bias": True},
    "biases of queries": {"include_qkv_bias": True},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_blocks_of_another_form_go_without(changes):
    assert can_pack(shapes())
    assert not can_pack(shapes(**changes))


@pytest.mark.parametrize(
    "compute", [{"dtype": "float16"}, {"attention": "cudnn"}, {"attention": "splash"}], ids=str
)
def test_models_that_compute_otherwise_go_without(compute):
    assert can_pack(shapes({"attention": "xla"}))
    assert can_pack(shapes({"dtype": "bfloat16", "param_dtype": "float16"}))
    assert not can_pack(shapes(compute))


def test_angles_in_half_precision_go_without():
    assert can_pack(shapes(rope_full_precision=False))
    assert not can_pack(shapes({"dtype": "bfloat16"}, rope_full_precision=False))


def test_adapters_and_models_of_another_family_go_without():
    assert not can_pack(add_adapters(shapes(), LoraConfig(r=2, lora_alpha=2.0)))
    only = LoraConfig(r=2, lora_alpha=2.0, target_modules="v_proj")
    assert not can_pack(add_adapters(shapes(), only))
    assert not can_pack(abstract_model(preset("qwen2-tiny"), ComputeConfig()))


def test_several_devices_go_without(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not can_pack(shapes())
    assert make().packed() == (None, None)


@pytest.mark.parametrize(("name", "value"), [("JAXLLADA_NATIVE", "0"), ("CXX", "no-such-compiler")])
def test_without_kernels_models_are_read_as_they_are(name, value, monkeypatch, capfd):
    monkeypatch.setenv(name, value)
    forget()
    assert not can_pack(shapes())
    assert make().packed() == (None, None)
    assert capfd.readouterr().err == ""


def test_a_processor_without_a_matrix_unit_goes_without(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/bash\nexec {build._compiler()} "$@" -march=x86-64-v3 -O0\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    forget()
    assert build.library("body") is not None
    assert not can_pack(shapes())


def test_nothing_is_built_for_a_processor_that_lists_no_matrix_unit(monkeypatch, capfd):
    monkeypatch.setattr(build, "_cpu", lambda: b"flags: fpu sse2 avx2 avx512bw amx_tile")
    forget()
    assert not can_pack(shapes())
    assert "building the body kernel" not in capfd.readouterr().err


def test_weights_are_packed_once_for_a_model_and_freed_with_it():
    model = make()
    made = model.packed()
    assert isinstance(made.blocks, PackedBlocks)
    assert isinstance(made.head, head.PackedHead)
    again = model.packed()
    assert again.blocks is made.blocks
    assert again.head is made.head
    parts = [weakref.ref(part) for part in (made.blocks.weights[0][0], made.head.panels)]
    count = len(packed._made)
    del made, again
    gc.collect()
    assert all(part() is not None for part in parts)
    del model
    gc.collect()
    assert all(part() is None for part in parts)
    assert len(packed._made) < count


def test_other_weights_are_packed_again():
    model = make()
    before = model.packed()
    x, positions = inputs(model, 1, 9)
    norms = [model.blocks.attn_norm.weight, model.blocks.ff_norm.weight]
    for weight in (*(layer.kernel for layer in packed._layers(model.blocks)), *norms):
        last, kept = model.packed(), jax.tree.map(lambda leaf: leaf, model)
        weight[...] = weight[...] * 1.2
        after = model.packed()
        assert after.blocks is not last.blocks
        assert kept.packed().blocks is last.blocks
        assert after.head is before.head
        rows, _ = after.blocks.run(x, model.rotation(positions), None)
        close(rows, oracle(model, x, positions))
    model.ff_out.weight[...] = model.ff_out.weight[...] * 2
    assert model.packed().head is not before.head
    assert model.packed().blocks is after.blocks


def test_models_of_other_types_on_the_same_weights_have_their_own():
    model = make()
    made = model.packed()
    half = jax.tree.map(lambda leaf: leaf, model)
    half.compute = dataclasses.replace(half.compute, dtype="bfloat16")
    other = jax.tree.map(lambda leaf: leaf, model)
    other.config = dataclasses.replace(other.config, rms_norm_eps=0.1)
    assert half.packed().blocks.norms[0].dtype == jax.numpy.bfloat16
    assert half.packed().head is None
    assert other.packed().blocks.config.rms_norm_eps == 0.1
    assert model.packed().blocks is made.blocks
