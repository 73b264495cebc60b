"""The torch sampler against the golden answers and the published loop, on CPU or simulated NPU."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.unmasking import transfer_counts
from npu_backend import convert
from npu_backend.sampling import predict as predict_module
from npu_backend.sampling.generate import sample, sample_stepwise, sample_trace
from npu_backend.sampling.gumbel import RowSeed, groups_of, order_noise, token_noise
from npu_backend.sampling.select import most_confident
from tests.npu.devices import DEVICE
from tests.npu.table_model import TableModel, logits_of
from tests.plain_loop import plain_loop, softmax

DENSE = "tests/golden/dense"
with open(f"{DENSE}/golden.json") as file:
    GOLDEN = json.load(file)
EOT = GOLDEN["eot_token_id"]


@pytest.fixture(scope="module")
def golden():
    return convert.load(DENSE, device=DEVICE)


@pytest.fixture(scope="module")
def model(sharp):
    """Says its end tokens, too, so that the options about them show."""
    return convert.load(sharp, device=DEVICE)


@pytest.fixture(scope="module")
def values():
    with np.load(f"{DENSE}/golden.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", range(len(GOLDEN["generate_cases"])))
def test_golden_answers_are_token_exact(golden, values, case):
    options = dict(GOLDEN["generate_cases"][case])
    mask = values["gen_attention_mask"] if options.pop("attention_mask") else None
    config = SamplingConfig(**options, eot_token_id=EOT, compat="official-2025")
    tokens = sample(golden, values["gen_prompts"], config, attention_mask=mask)
    np.testing.assert_array_equal(tokens.cpu(), values[f"gen_{case}"])


PLAIN = {"steps": 6, "gen_length": 12, "block_length": 4}
ENDS = {"confidence_eos_eot_inf": True, "eot_token_id": EOT}
OFFICIAL = {"compat": "official-2025"}
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
    "late end tokens": PLAIN | ENDS,
    "late end tokens, noise": PLAIN | ENDS | {"temperature": 1.0},
    "late end tokens, random order": PLAIN | ENDS | {"remasking": "random"},
    "official end tokens": PLAIN | ENDS | OFFICIAL,
    "official end tokens, noise": PLAIN | ENDS | OFFICIAL | {"temperature": 1.0},
}
# Two prompts of different length, padded on the left.
PROMPTS = np.array([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]])
VISIBLE = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]], np.int32)
SEEDS = [RowSeed(5, 0), RowSeed(5, 1)]
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def draws(config, seeds=SEEDS):
    """The random numbers of the sampler as the slow loop asks for them, one position at a time.

    A token is drawn in the two steps that `gumbel.py` derives, written out in float64.
    """

    def slot_in_block(slot):
        return slot % config.block_length if slot >= 0 else slot

    def choose(row, slot, logits, step):
        if slot < 0:
            return 0
        inside = slot_in_block(slot)
        noise = token_noise([seeds[row]], step, 0, inside + 1, len(logits))[0, inside]
        groups, width = groups_of(len(logits))
        scores = np.full(groups * width, -np.inf)
        scores[: len(logits)] = logits.astype(np.float64) / config.temperature
        with np.errstate(divide="ignore"):
            mass = np.log(np.exp(scores - scores.max()).reshape(groups, width).sum(axis=1))
        group = np.argmax(mass + noise[:groups])
        return group * width + np.argmax(scores.reshape(groups, width)[group] + noise[groups:])

    def rank(row, slot, step):
        if slot < 0:
            return 0.0
        inside = slot_in_block(slot)
        return order_noise([seeds[row]], step, 0, inside + 1)[0, inside]

    return choose, rank


@every_option
def test_every_step_equals_the_published_loop(model, options):
    config = SamplingConfig(**options)
    expected = list(
        plain_loop(logits_of(model), PROMPTS, config, model.config, VISIBLE, *draws(config))
    )
    trace = sample_trace(model, PROMPTS, config, VISIBLE, SEEDS)
    frames = list(trace.frames())[1:]
    assert len(frames) == len(expected)
    for frame, canvas in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame, canvas[:, PROMPTS.shape[1] :])


@every_option
def test_each_row_of_a_ragged_batch_equals_its_solo_run(model, options):
    config = SamplingConfig(**options)
    both = sample(model, PROMPTS, config, VISIBLE, SEEDS).cpu()
    for row, seed in enumerate(SEEDS):
        alone = PROMPTS[row : row + 1, VISIBLE[row] == 1]
        tokens = sample(model, alone, config, generator=[seed]).cpu()
        np.testing.assert_array_equal(tokens[0, -12:], both[row, -12:])


@every_option
def test_committed_tokens_never_change_and_no_mask_is_left(model, options):
    config = SamplingConfig(**options)
    mask_id = model.config.mask_token_id
    previous = np.full((2, config.gen_length), mask_id)
    for trace in sample_stepwise(model, PROMPTS, config, VISIBLE, SEEDS):
        was_committed = previous != mask_id
        np.testing.assert_array_equal(trace.tokens[was_committed], previous[was_committed])
        np.testing.assert_array_equal(trace.order >= 0, trace.tokens != mask_id)
        previous = trace.tokens
    assert (previous != mask_id).all()
    whole = sample_trace(model, PROMPTS, config, VISIBLE, SEEDS)
    np.testing.assert_array_equal(previous, whole.tokens)


@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
@pytest.mark.parametrize("name", ["greedy", "guidance, noise, random order"])
def test_the_number_of_rows_whose_logits_exist_changes_nothing(
    model, monkeypatch, rows_at_once, name
):
    config = SamplingConfig(**OPTIONS[name])
    expected = sample(model, PROMPTS, config, VISIBLE, SEEDS)
    monkeypatch.setattr(predict_module, "ROWS_AT_ONCE", rows_at_once)
    assert torch.equal(sample(model, PROMPTS, config, VISIBLE, SEEDS), expected)


def test_prompts_keep_their_tokens_and_may_be_tensors(model):
    config = SamplingConfig(**PLAIN)
    tokens = sample(model, PROMPTS, config, VISIBLE)
    np.testing.assert_array_equal(tokens.cpu()[:, : PROMPTS.shape[1]], PROMPTS)
    assert (tokens.dtype, tokens.device) == (torch.int64, model.device)
    on_device = (torch.from_numpy(x).to(DEVICE) for x in (PROMPTS, VISIBLE))
    prompts, visible = on_device
    assert torch.equal(sample(model, prompts, config, visible), tokens)


def test_confidence_is_the_probability_the_model_gave(model):
    config = SamplingConfig(steps=6, gen_length=6, block_length=6, temperature=1.0)
    trace = sample_trace(model, PROMPTS[:1], config, generator=SEEDS[:1])
    visible = np.ones((1, PROMPTS.shape[1] + 6), np.int32)
    for slot in range(6):
        before = trace.frame(int(trace.order[0, slot]))
        canvas = np.concatenate([PROMPTS[:1], before], axis=1)
        logits = logits_of(model)(canvas, visible)[0, PROMPTS.shape[1] + slot].astype(np.float64)
        probability = softmax(logits)[trace.tokens[0, slot]]
        # The model's own float32 error in a logit of size 20, which enters as exp.
        np.testing.assert_allclose(trace.confidence[0, slot], probability, rtol=1e-4)


def test_dropout_is_off_and_the_mode_comes_back():
    config = dataclasses.replace(convert.load(DENSE).config, residual_dropout=0.5)
    from npu_backend.models.mask_predictor import MaskPredictor

    model = MaskPredictor(config, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = sample(model, PROMPTS, SamplingConfig(**PLAIN))
    model.train()
    assert torch.equal(sample(model, PROMPTS, SamplingConfig(**PLAIN)), expected)
    assert model.training


def test_a_generator_is_used_up_and_repeats():
    model, config = TableModel(seed=3), SamplingConfig(**PLAIN, temperature=2.0)
    prompt = np.array([[4, 8, 15]] * 3)
    generator = torch.Generator().manual_seed(1)
    first, second = (sample(model, prompt, config, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) == 3  # rows draw their own noise
    again = sample(model, prompt, config, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)


def per_row(count, rows):
    return torch.full((rows,), count, dtype=torch.int32, device=DEVICE)


def by_hand(confidence, eligible, count, last):
    chosen = np.zeros(confidence.shape, bool)
    for row in range(len(confidence)):
        candidates = np.flatnonzero(eligible[row])
        ranked = sorted(candidates, key=lambda i: (last[row, i], -confidence[row, i], i))
        chosen[row, ranked[:count]] = True
    return chosen


@pytest.mark.parametrize("levels", [2, 5, 10_000])  # few levels: many ties
@pytest.mark.parametrize("has_last", [False, True])
def test_selection_takes_the_most_confident_with_the_lowest_index_first(levels, has_last):
    rng = np.random.default_rng(levels)
    shape = (64, 13)
    confidence = (rng.integers(0, levels, shape) / levels).astype(np.float32)
    eligible = rng.random(shape) < 0.7
    last = rng.random(shape) < (0.4 if has_last else 0)
    for count in (0, 1, 4, 13, 20):
        given = (torch.from_numpy(x).to(DEVICE) for x in (confidence, eligible, last))
        sure, open_, late = given
        chosen = most_confident(sure, open_, per_row(count, 64), late if has_last else None)
        np.testing.assert_array_equal(chosen.cpu(), by_hand(confidence, eligible, count, last))


@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_the_plan_of_the_host_says_how_many_positions_are_open(steps):
    """The head gets exactly the open rows: one more or less would be another shape here."""
    model, sizes = TableModel(seed=1), []
    model.head = lambda hidden: sizes.append(len(hidden)) or hidden.clone()
    config = SamplingConfig(steps=steps * 2, gen_length=8, block_length=4)
    sample(model, np.array([[1, 2], [3, 4]]), config)
    counts = transfer_counts(4, steps)
    expected = [2 * (4 - int(counts[:call].sum())) for call in range(min(steps, 4))]
    assert sizes == expected * 2


def test_a_missing_generator_is_told():
    with pytest.raises(UserError, match="pass generator=torch.Generator"):
        sample(TableModel(), [[1, 2]], SamplingConfig(**PLAIN, temperature=0.5))
    with pytest.raises(UserError, match="generator has 2 seeds; expected one generator, or one"):
        sample(TableModel(), [[1, 2]], SamplingConfig(**PLAIN), generator=SEEDS)
