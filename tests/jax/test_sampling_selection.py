"""Selections and candidates of the compiled sampler: the tests of both backends, and its own."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.common.errors import UserError
from jaxllada.sampling.filters import filtered
from jaxllada.sampling.generate import sample, sample_trace
from jaxllada.sampling.loop import advance
from tests.both.selection import *  # noqa: F403
from tests.both.selection import RANDOM
from tests.jax import backend as jax_backend
from tests.jax.sampling_oracle import TableModel
from tests.plain_loop import softmax
from tests.sampling_cases import CONFIG, PROMPT, sorted_filter

TABLE = TableModel(seed=3)


@pytest.fixture(scope="module")
def backend():
    return jax_backend


def test_adaptive_rules_save_calls_and_a_bolder_bound_saves_more():
    config = dataclasses.replace(CONFIG, selection="threshold:0.6")
    calls = []
    for threshold in (0.6, 0.4, 0.2, 0.1):
        config = dataclasses.replace(config, selection=f"threshold:{threshold}")
        calls.append(sample_trace(TABLE, PROMPT, config).num_steps)
    assert calls == sorted(calls, reverse=True)
    assert calls[0] > calls[-1]


def test_numbers_of_selections_and_candidates_are_data():
    config = dataclasses.replace(
        CONFIG, selection="threshold:0.5", temperature=0.5, top_p=0.5, top_k=4,
        suppress_tokens=(1, 2), begin_suppress_tokens=(5,),
    )  # fmt: skip
    key = jax.random.key(0)
    sample(TABLE, PROMPT, config, key=key)
    compiled = advance._cache_size()
    for changes in [
        {"selection": "threshold:0.1"},
        {"top_p": 0.9},
        {"top_k": 9},
        {"suppress_tokens": (7, 8)},
        {"begin_suppress_tokens": (3,)},
        {"steps": 4},
    ]:
        sample(TABLE, PROMPT, dataclasses.replace(config, **changes), key=key)
    assert advance._cache_size() == compiled


@pytest.mark.parametrize(("top_p", "top_k"), [(0.3, None), (0.9, None), (None, 5), (0.7, 3)])
def test_filters_keep_what_sorting_keeps(top_p, top_k):
    config = dataclasses.replace(CONFIG, top_p=top_p, top_k=top_k)
    policy = SimpleNamespace(has_top_p=top_p is not None, has_top_k=top_k is not None)
    inputs = SimpleNamespace(top_p=jnp.float32(top_p or 1), top_k=jnp.int32(top_k or 1))
    logits = np.random.default_rng(0).normal(0, 3, (200, 50)).astype(np.float32)
    logits[:, 7] = -np.inf
    kept = -np.inf < np.array(filtered.__wrapped__(jnp.asarray(logits.T), inputs, policy)).T
    exact = (softmax(row.astype(np.float64)) for row in logits)
    expected = [sorted_filter(p, top_p or 1, top_k or 50) for p in exact]
    expected = np.array(expected) & (logits > -np.inf)
    np.testing.assert_array_equal(kept, expected)
    assert config.candidate.top_k == top_k


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "thresh:0.9"}, "selection=thresh:0.9 is unknown; did you mean 'threshold'"),
        ({"selection": "threshold:high"}, "threshold=high must be a number"),
        ({"selection": "threshold:-1"}, "threshold=-1.0 must be a finite number"),
        ({"selection": "factor:1,rule=own"}, "rule=own is unknown; choose from intended"),
        ({"selection": "fixed:stochastic=true"}, "stochastic=true is for counts=dllm"),
        ({"selection": "dream:origin,alg_temp=1"}, "alg_temp=1.0 orders by confidence"),
        ({"selection": "dream:eps=0"}, "eps=0.0 must lie between 0 and 1"),
        ({"selection": "margin:dllm,dllm"}, "selection=margin:dllm,dllm"),
        ({"selection": "margin", "remasking": "random"}, "remasking=random and selection=margin"),
        ({"selection": "threshold:1", "remasking": "random"}, "two orders of positions"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_k": 0}, "top_k=0 must be a whole number, at least 1"),
        ({"suppress_tokens": [-3]}, r"suppress_tokens=\[-3\] must hold token ids"),
        ({"cfg_keep_tokens": [3]}, r"cfg_keep_tokens=\[3\] is for guidance"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_ids_outside_the_vocabulary_are_refused():
    config = dataclasses.replace(CONFIG, suppress_tokens=(40,))
    with pytest.raises(UserError, match="suppress_tokens holds 40, outside the 32 rows"):
        sample(TABLE, PROMPT, config)


@pytest.mark.parametrize("rule", RANDOM)
def test_rules_that_draw_need_a_key(rule):
    with pytest.raises(UserError, match=r"pass key=jax\.random\.key"):
        sample(TABLE, PROMPT, dataclasses.replace(CONFIG, selection=rule))
