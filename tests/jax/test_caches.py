"""Properties of the sampler's caches: what they may change, and what they must not copy."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada import convert
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.models import packed
from jaxllada.sampling import generate
from jaxllada.sampling.generate import sample_stepwise, sample_trace
from jaxllada.sampling.loop import advance
from tests.jax.golden import DENSE

PLAN = {"steps": 12, "gen_length": 24, "block_length": 8}
PROMPTS = np.array([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]], np.int32)
VISIBLE = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1]], np.int32)


@pytest.fixture(scope="module")
def model():
    return convert.load(DENSE)


def run(model, **options):
    config = SamplingConfig(**PLAN | options)
    return sample_trace(model, PROMPTS, config, VISIBLE, key=jax.random.key(3))


REFRESHED = ["prefix:1", "dual:1", "vicinity:2,2,0,1", "dllm:1,1,0.5"]


@pytest.mark.parametrize("cache", REFRESHED)
def test_a_refresh_in_every_call_gives_the_tokens_of_no_cache(model, cache):
    options = {"cfg_scale": 0.7, "temperature": 0.5, "selection": "threshold:0.1"}
    cached, plain = run(model, cache=cache, **options), run(model, **options)
    assert plain.num_steps < PLAN["steps"], "the threshold is never reached"
    np.testing.assert_array_equal(cached.tokens, plain.tokens)
    np.testing.assert_array_equal(cached.order, plain.order)


def test_a_refresh_in_every_call_is_exact_for_block_causal_attention_too(model):
    causal = {"attention": "block_causal"}
    cached, plain = run(model, cache="block_causal:1", **causal), run(model, **causal)
    np.testing.assert_array_equal(cached.tokens, plain.tokens)


def test_one_block_that_is_the_whole_answer_needs_no_refresh_for_dual_to_see_it_change(model):
    """Only the prompt is stale then; with nothing in it, nothing is."""
    options = {"steps": 12, "gen_length": 24, "block_length": 24}
    empty = np.zeros((1, 0), np.int32)
    tokens = [
        sample_trace(model, empty, SamplingConfig(**options, cache=cache)).tokens
        for cache in ("none", "dual")
    ]
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize("cache", ["dllm:4,3,0.25"])
def test_guided_rows_keep_a_memory_of_their_own_and_rows_do_not_depend_on_batch_mates(model, cache):
    config = SamplingConfig(**PLAN, cache=cache, cfg_scale=1.5)
    both = sample_trace(model, PROMPTS, config, VISIBLE)
    for row in range(2):
        alone = sample_trace(model, PROMPTS[row : row + 1, VISIBLE[row] == 1], config)
        np.testing.assert_array_equal(alone.tokens[0], both.tokens[row])
    plain = sample_trace(model, PROMPTS, SamplingConfig(**PLAN, cache=cache), VISIBLE)
    assert (plain.tokens != both.tokens).any()


def test_pieces_of_a_run_carry_the_memory(model):
    config = SamplingConfig(**PLAN, cache="dual")
    *_, last = sample_stepwise(model, PROMPTS, config, VISIBLE, steps_per_piece=5)
    np.testing.assert_array_equal(last.tokens, run(model, cache="dual").tokens)


@pytest.mark.parametrize(
    "options",
    [{"cache": "dual"}, {"cache": "block_causal", "attention": "block_causal"}],
    ids=["dual", "block_causal"],
)
def test_rows_that_leave_and_blocks_that_come_find_what_was_kept(model, options):
    config = SamplingConfig(**PLAN | {"steps": 4}, canvas="grow", **options)
    first = sample_trace(model, PROMPTS, config, VISIBLE)
    # The second row ends with its first block; then its memory goes, and a block comes.
    config = dataclasses.replace(config, stop_token_ids=(int(first.tokens[1, 7]),))
    both = sample_trace(model, PROMPTS, config, VISIBLE)
    plain = dataclasses.replace(config, cache="none")
    for row in range(2):
        prompt = PROMPTS[row : row + 1, VISIBLE[row] == 1]
        alone = sample_trace(model, prompt, config)
        length = alone.tokens.shape[1]
        np.testing.assert_array_equal(alone.tokens[0], both.tokens[row, :length])
        if "attention" in options:
            np.testing.assert_array_equal(alone.tokens, sample_trace(model, prompt, plain).tokens)


def test_tokens_given_between_masks_are_read_again_when_all_before_them_is_known(model):
    """A block without masks is passed over; what comes before it changed nevertheless."""
    masked = np.full((1, 24), model.config.mask_token_id, np.int32)
    masked[0, 8:16] = [17, 301, 44, 5, 9, 260, 8, 77]
    options = PLAN | {"gen_length": 8, "steps": 4, "infill": True, "attention": "block_causal"}
    tokens = [
        sample_trace(model, masked, SamplingConfig(**options, cache=cache)).tokens
        for cache in ("none", "block_causal")
    ]
    np.testing.assert_array_equal(*tokens)


def test_calls_of_a_block_write_the_memory_in_place(model, monkeypatch):
    """The program copies whole buffers where it reads the whole canvas, and nowhere else."""
    programs = []

    def record(model, kernels, inputs, state, *ends, policy):
        given = (model, kernels, inputs, state, *ends)
        text = advance.lower(*given, policy=policy).compile().as_text()
        programs.append((text, jax.tree.leaves(state.memory)))
        return advance(*given, policy=policy)

    monkeypatch.setattr(generate, "advance", record)
    monkeypatch.setattr(packed, "can_pack", lambda model: False)
    sample_trace(model, PROMPTS[:1], SamplingConfig(**PLAN, cache="dual"))
    (text, buffers), *_ = programs
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{$(.*?)^\}", text, re.M | re.S))
    shape = ",".join(str(n) for n in max(buffers, key=jnp.size).shape)
    copying = {
        name for name, text in bodies.items() if re.search(rf"f32\[{shape}\]\S* copy\(", text)
    }
    # The branches of a call: the block alone, and the whole canvas.
    branches = re.search(
        rf"f32\[{shape}\].* conditional\(.*branch_computations=\{{%?([\w.-]+), %?([\w.-]+)\}}",
        text,
    )
    assert branches is not None
    callers = {
        name
        for name, text in bodies.items()
        for copier in copying
        if re.search(rf"(calls|to_apply|body)=%?{re.escape(copier)}\b", text)
    }
    assert copying | callers
    assert branches[1] not in copying | callers
    fused = {name for name in copying if "fused" in name or "wrapped" in name}
    assert (copying - fused) | callers <= {branches[2]}


def test_what_a_cache_cannot_do_is_refused_by_name(model):
    with pytest.raises(UserError, match="attention=block_causal"):
        SamplingConfig(cache="block_causal")
    masked = PROMPTS.copy()
    masked[0, 2] = model.config.mask_token_id
    with pytest.raises(UserError, match=r"canvas=adaptive.*attention=block_causal"):
        SamplingConfig(canvas="adaptive", attention="block_causal")
    config = SamplingConfig(**PLAN, cache="dual", compat="official-2025")
    with pytest.raises(UserError, match="cache=dual"):
        sample_trace(model, masked, config, VISIBLE)


@pytest.mark.parametrize(
    "text", ["dllm:0", "dllm:ratio=1.5", "vicinity:-1", "dual:refresh=x", "dull", "prefix:1,2"]
)
def test_values_that_cannot_be_are_refused(text):
    with pytest.raises(UserError, match="cache="):
        SamplingConfig(cache=text)


@pytest.mark.parametrize("cache", ["dual", "dllm:4,3,0.25"])
def test_a_stack_of_blocks_keeps_what_single_blocks_keep(model, cache, monkeypatch):
    """Accelerators walk the stacked weights, CPUs single blocks."""
    options = {"steps": 4, "gen_length": 12, "block_length": 6, "cache": cache}
    single = sample_trace(model, PROMPTS, SamplingConfig(**options), VISIBLE)
    jax.clear_caches()  # the program does not depend on what is patched here
    monkeypatch.setattr(type(model), "unstacked", lambda self: None)
    stacked = sample_trace(model, PROMPTS, SamplingConfig(**options), VISIBLE)
    jax.clear_caches()
    np.testing.assert_array_equal(stacked.tokens, single.tokens)
    np.testing.assert_array_equal(stacked.order, single.order)
    np.testing.assert_allclose(stacked.confidence, single.confidence, rtol=1e-4, atol=1e-6)
