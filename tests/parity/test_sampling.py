"""Both samplers on the same weights: the same tokens in the same order."""

import json

import numpy as np
import pytest

import jaxllada
import npu_backend
from jaxllada.sampling.generate import sample_trace as jax_trace
from npu_backend.sampling.generate import sample_trace as torch_trace
from tests.jax.golden import DENSE
from tests.sampling_cases import PROMPTS, VISIBLE
from tests.selection_oracle import RULES, SILENT

GOLDEN = json.loads((DENSE / "golden.json").read_text())
EOT = GOLDEN["eot_token_id"]
MASKED = np.array([[17, 511, 44, 5, 511, 260, 8], [0, 0, 0, 77, 12, 400, 3]], np.int32)


@pytest.fixture(scope="module")
def models(sharp):
    return jaxllada.load(sharp), npu_backend.load(sharp)


OFFICIAL = {"compat": "official-2025"}
HOLD = {"confidence_eos_eot_inf": True, "eot_token_id": EOT}
OPTIONS = {
    "own rules": {},
    "release": OFFICIAL,
    "stop at the end": {"stop_at_eos": True},
    "release, stop at the end": OFFICIAL | {"stop_at_eos": True},
    "end tokens last": HOLD,
    "end tokens last, release": HOLD | OFFICIAL,
    "no end token, guidance": {"logits_eos_inf": True, "cfg_scale": 1.5},
    "guidance, release": OFFICIAL | {"cfg_scale": 0.7},
}


def assert_same_run(models, config, prompts):
    ours, theirs = (
        jax_trace(models[0], prompts, config, VISIBLE),
        torch_trace(models[1], prompts, config, VISIBLE),
    )
    np.testing.assert_array_equal(theirs.tokens, ours.tokens)
    np.testing.assert_array_equal(theirs.order, ours.order)
    # Both round logits of size 60 in float32, which enter as exp; 0.01 is a difference of those.
    np.testing.assert_allclose(theirs.confidence, ours.confidence, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_greedy_runs_commit_the_same_tokens_in_the_same_steps(models, options):
    config = jaxllada.SamplingConfig(steps=8, gen_length=16, block_length=8, **options)
    assert_same_run(models, config, PROMPTS)


COMBINED = {
    "guidance, end tokens last": HOLD | {"cfg_scale": 0.7, "cfg_keep_tokens": (17, 12)},
    "filters, suppressed": {"top_p": 0.6, "suppress_tokens": (203, 410)},
    "no confidence, stop": {"begin_suppress_tokens": (203, 410), "stop_at_eos": True, "top_k": 3},
}


@pytest.mark.parametrize("rule", RULES + SILENT)
def test_selections_commit_the_same_tokens_in_the_same_steps(models, rule):
    for steps in (6, 16):
        config = jaxllada.SamplingConfig(
            steps=steps, gen_length=16, block_length=8, selection=rule, stop_at_eos=True
        )
        assert_same_run(models, config, PROMPTS)


@pytest.mark.parametrize("rule", ["threshold:0.6", "dream:entropy"])
@pytest.mark.parametrize("options", COMBINED.values(), ids=COMBINED.keys())
def test_selections_and_candidates_together_are_alike(models, rule, options):
    config = jaxllada.SamplingConfig(
        steps=16, gen_length=16, block_length=8, selection=rule, **options
    )
    assert_same_run(models, config, PROMPTS)


@pytest.mark.parametrize("options", (OPTIONS | COMBINED).values(), ids=(OPTIONS | COMBINED).keys())
def test_every_option_of_these_runs_shows(models, options):
    """Otherwise two samplers that ignore it would be alike, too."""

    def answers(**options):
        for rule in ("fixed", "threshold:0.6", "dream:entropy"):
            config = jaxllada.SamplingConfig(
                steps=16, gen_length=16, block_length=8, selection=rule, **options
            )
            trace = torch_trace(models[1], PROMPTS, config, VISIBLE)
            yield np.stack([trace.tokens, trace.order])

    for name in options:
        gone = (name, "cfg_keep_tokens") if name == "cfg_scale" else (name,)
        left = {key: value for key, value in options.items() if key not in gone}
        # The release differs in how it holds end tokens back, and in predicting masks.
        if name != "compat" or "confidence_eos_eot_inf" in options:
            pairs = zip(answers(**options), answers(**left), strict=True)
            assert any((a != b).any() for a, b in pairs), name


def test_masks_in_prompts_are_filled_alike(models):
    config = jaxllada.SamplingConfig(steps=8, gen_length=16, block_length=8, **OFFICIAL)
    assert_same_run(models, config, MASKED)


def test_sampled_tokens_have_the_same_distribution(models):
    """One position, 2000 rows of each sampler: their noise differs, their frequencies must not."""
    import jax
    import torch

    config = jaxllada.SamplingConfig(steps=1, gen_length=1, block_length=1, temperature=1.5)
    rows = 2000
    prompts = np.repeat(PROMPTS[:1], rows, axis=0)
    drawn = [
        np.asarray(jaxllada.sample(models[0], prompts, config, key=jax.random.key(0))),
        npu_backend.sample(
            models[1], prompts, config, generator=torch.Generator().manual_seed(0)
        ).numpy(),
    ]
    a, b = (np.bincount(tokens[:, -1], minlength=512) for tokens in drawn)
    often = a + b >= 20
    a, b = (np.append(x[often], x[~often].sum()).astype(float) for x in (a, b))
    degrees = len(a) - 1
    assert degrees >= 5
    statistic = ((a - b) ** 2 / np.maximum(a + b, 1)).sum()
    # Mean and spread of chi-square; five standard deviations.
    assert statistic < degrees + 5 * np.sqrt(2 * degrees)
