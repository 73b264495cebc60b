"""The compiled sampler against the golden answers and against the published loop in NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada import convert
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.sampling.generate import sample, sample_stepwise, sample_trace
from tests.jax.golden import DENSE, dense_values
from tests.jax.sampling_oracle import TableModel, plain_loop, softmax

GOLDEN = json.loads((DENSE / "golden.json").read_text())
EOT = GOLDEN["eot_token_id"]


@pytest.fixture(scope="module")
def golden():
    return convert.load(DENSE)


@pytest.fixture(scope="module")
def model(sharp):
    """Says its end tokens, too, so that the options about them show."""
    return convert.load(sharp)


@pytest.fixture(scope="module")
def logits_of(model):
    forward = jax.jit(lambda canvas, visible: model(canvas, visible))
    return lambda canvas, visible: np.array(forward(canvas, visible))


@pytest.mark.parametrize("case", range(len(GOLDEN["generate_cases"])))
def test_golden_answers_are_token_exact(golden, case):
    values = dense_values()
    options = dict(GOLDEN["generate_cases"][case])
    mask = values["gen_attention_mask"] if options.pop("attention_mask") else None
    config = SamplingConfig(**options, eot_token_id=EOT, compat="official-2025")
    tokens = sample(golden, values["gen_prompts"], config, attention_mask=mask)
    np.testing.assert_array_equal(tokens, values[f"gen_{case}"])


PLAIN = {"steps": 6, "gen_length": 12, "block_length": 4}
OPTIONS = {
    "greedy": PLAIN,
    "pure diffusion": {"steps": 5, "gen_length": 12, "block_length": 12},
    "more steps than tokens": {"steps": 27, "gen_length": 12, "block_length": 4},
    "one step": {"steps": 1, "gen_length": 9, "block_length": 9},
    "noise": PLAIN | {"temperature": 0.8},
    "random order": PLAIN | {"remasking": "random"},
    "guidance": PLAIN | {"cfg_scale": 1.5},
    "guidance, noise, random order": PLAIN
    | {"cfg_scale": 0.5, "temperature": 1.3, "remasking": "random"},
    "no end token": PLAIN | {"logits_eos_inf": True, "temperature": 0.5},
    "late end tokens": PLAIN | {"confidence_eos_eot_inf": True, "eot_token_id": EOT},
    "late end tokens, noise": PLAIN
    | {"confidence_eos_eot_inf": True, "eot_token_id": EOT, "temperature": 1.0},
    "late end tokens, random order": PLAIN
    | {"confidence_eos_eot_inf": True, "eot_token_id": EOT, "remasking": "random"},
    "official end tokens": PLAIN
    | {"confidence_eos_eot_inf": True, "eot_token_id": EOT, "compat": "official-2025"},
    "official end tokens, noise": PLAIN
    | {
        "confidence_eos_eot_inf": True,
        "eot_token_id": EOT,
        "compat": "official-2025",
        "temperature": 1.0,
    },
}
# Two prompts of different length, padded on the left.
PROMPTS = np.array([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]], np.int32)
VISIBLE = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]], np.int32)


def row_keys(seed=5):
    return [jax.random.fold_in(jax.random.key(seed), row) for row in range(2)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_step_equals_the_published_loop(model, logits_of, options):
    config = SamplingConfig(**options)
    expected = list(plain_loop(logits_of, PROMPTS, config, model.config, VISIBLE, row_keys()))
    trace = sample_trace(model, PROMPTS, config, VISIBLE, key=jax.random.key(5))
    frames = list(trace.frames())[1:]
    assert len(frames) == len(expected)
    for frame, canvas in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame, canvas[:, PROMPTS.shape[1] :])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_each_row_of_a_ragged_batch_equals_its_solo_run(model, options):
    config = SamplingConfig(**options)
    both = sample(model, PROMPTS, config, VISIBLE, key=jax.random.key(5))
    for row, key in enumerate(row_keys()):
        alone = PROMPTS[row : row + 1, VISIBLE[row] == 1]
        tokens = sample(model, alone, config, key=key[None])
        np.testing.assert_array_equal(tokens[0, -12:], both[row, -12:])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_committed_tokens_never_change_and_no_mask_is_left(model, options):
    config = SamplingConfig(**options)
    mask_id = model.config.mask_token_id
    previous = np.full((2, config.gen_length), mask_id)
    for trace in sample_stepwise(model, PROMPTS, config, VISIBLE, key=jax.random.key(5)):
        was_committed = previous != mask_id
        np.testing.assert_array_equal(trace.tokens[was_committed], previous[was_committed])
        np.testing.assert_array_equal(trace.order >= 0, trace.tokens != mask_id)
        previous = trace.tokens
    assert (previous != mask_id).all()
    whole = sample_trace(model, PROMPTS, config, VISIBLE, key=jax.random.key(5))
    np.testing.assert_array_equal(previous, whole.tokens)


def test_prompts_keep_their_tokens(model):
    tokens = sample(model, PROMPTS, SamplingConfig(**PLAIN), VISIBLE)
    np.testing.assert_array_equal(tokens[:, : PROMPTS.shape[1]], PROMPTS)
    assert tokens.dtype == jnp.int32


def test_confidence_is_the_probability_the_model_gave(model, logits_of):
    config = SamplingConfig(steps=6, gen_length=6, block_length=6, temperature=1.0)
    trace = sample_trace(model, PROMPTS[:1], config, key=jax.random.key(5))
    visible = np.ones((1, PROMPTS.shape[1] + 6), np.int32)
    for slot in range(6):
        before = trace.frame(int(trace.order[0, slot]))
        canvas = np.concatenate([PROMPTS[:1], before], axis=1)
        logits = logits_of(canvas, visible)[0, PROMPTS.shape[1] + slot].astype(np.float64)
        probability = softmax(logits)[trace.tokens[0, slot]]
        # The model's own float32 error in a logit of size 20, which enters as exp.
        np.testing.assert_allclose(trace.confidence[0, slot], probability, rtol=1e-4)


def test_a_table_of_logits_is_followed_exactly():
    """Prompts of several lengths on a model whose sums are exact: no rounding can hide a slip."""
    table = TableModel(seed=1)
    config = SamplingConfig(steps=8, gen_length=24, block_length=6)
    rng = np.random.default_rng(0)
    for length in (0, 1, 7, 40):
        prompt = rng.integers(0, 29, (3, length)).astype(np.int32)
        (*_, expected) = plain_loop(
            lambda canvas, visible: np.array(table(canvas, visible)), prompt, config, table.config
        )
        np.testing.assert_array_equal(sample(table, prompt, config), expected)
