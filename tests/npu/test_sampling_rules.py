"""Rules of the torch sampler beyond the published loop: end tokens, prompts, wrong input."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from npu_backend.sampling import generate
from npu_backend.sampling.generate import sample, sample_stepwise, sample_trace
from npu_backend.sampling.gumbel import RowSeed
from npu_backend.sampling.loop import advance
from tests.npu.table_model import TableModel, logits_of
from tests.plain_loop import plain_loop

MODEL = TableModel(seed=3)
EOS, MASK, EOT = MODEL.config.eos_token_id, MODEL.config.mask_token_id, 29
CONFIG = SamplingConfig(steps=6, gen_length=12, block_length=4)
PROMPT = np.array([[4, 8, 15, 16, 23]])
SEED = [RowSeed(1)]


def with_table(change, favourite=None):
    model = TableModel(seed=3, favourite=favourite)
    with torch.no_grad():
        change(model.table)
    return model


class Operators(TorchDispatchMode):
    """Collects the operators that run inside, and the types of what they return."""

    def __init__(self):
        super().__init__()
        self.names, self.types = set(), set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        self.names.add(operator.overloadpacket.__name__)
        self.types |= {x.dtype for x in pytree.tree_leaves(out) if isinstance(x, torch.Tensor)}
        return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "remasking": "random", "cfg_scale": 1.0},
        {"confidence_eos_eot_inf": True, "logits_eos_inf": True},
        {"compat": "official-2025"},
    ],
)
def test_the_host_never_waits_between_steps_and_nothing_is_float64(monkeypatch, options):
    seen = Operators()

    def watched(*args):
        with seen:
            return advance(*args)

    monkeypatch.setattr(generate, "advance", watched)
    sample(MODEL, PROMPT, dataclasses.replace(CONFIG, **options), generator=SEED)
    # What asks the device for a value, or has a size that depends on values.
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "isin", "equal"}
    assert "argsort" in seen.names or "sort" in seen.names
    assert not seen.names & waiting
    assert torch.float64 not in seen.types


@pytest.mark.parametrize("steps_per_piece", [1, 2, 5, 100])
def test_running_in_pieces_gives_the_same_tokens(steps_per_piece):
    config = dataclasses.replace(CONFIG, temperature=1.0)
    whole = sample_trace(MODEL, PROMPT, config, generator=SEED)
    pieces = list(
        sample_stepwise(MODEL, PROMPT, config, generator=SEED, steps_per_piece=steps_per_piece)
    )
    assert len(pieces) == -(-6 // steps_per_piece)
    for piece in pieces:
        np.testing.assert_array_equal(piece.tokens, whole.frame(piece.num_steps))
    np.testing.assert_array_equal(pieces[-1].order, whole.order)
    np.testing.assert_array_equal(pieces[-1].confidence, whole.confidence)


def test_a_table_of_logits_is_followed_exactly():
    """Prompts of several lengths on a model whose sums are exact: no rounding can hide a slip."""
    table = TableModel(seed=1)
    config = SamplingConfig(steps=8, gen_length=24, block_length=6)
    rng = np.random.default_rng(0)
    for length in (0, 1, 7, 40):
        prompt = rng.integers(0, 29, (3, length)).astype(np.int32)
        (*_, expected) = plain_loop(logits_of(table), prompt, config, table.config)
        np.testing.assert_array_equal(sample(table, prompt, config).cpu(), expected)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("late", [EOS, EOT])
def test_end_tokens_are_committed_last_in_their_block(late, temperature):
    """One position of each block prefers an end token, with the highest confidence of all."""

    def change(table):
        table[[len(PROMPT[0]) + slot for slot in (1, 6, 8)], late] = 40

    model = with_table(change)
    config = SamplingConfig(
        steps=12, gen_length=12, block_length=4, temperature=temperature,
        confidence_eos_eot_inf=True, eot_token_id=EOT,
    )  # fmt: skip
    order = sample_trace(model, PROMPT, config, generator=SEED).order[0]
    np.testing.assert_array_equal(order[[1, 6, 8]], [3, 7, 11])
    plain = dataclasses.replace(config, confidence_eos_eot_inf=False)
    order = sample_trace(model, PROMPT, plain, generator=SEED).order[0]
    np.testing.assert_array_equal(order[[1, 6, 8]], [0, 4, 8])


def test_end_tokens_everywhere_are_committed_in_order_with_confidence_zero_officially():
    config = SamplingConfig(
        steps=4, gen_length=4, block_length=4,
        confidence_eos_eot_inf=True, eot_token_id=EOT, compat="official-2025",
    )  # fmt: skip
    trace = sample_trace(TableModel(seed=3, favourite=EOS), PROMPT, config)
    np.testing.assert_array_equal(trace.tokens, [[EOS] * 4])
    np.testing.assert_array_equal(trace.order, [[0, 1, 2, 3]])
    np.testing.assert_array_equal(trace.confidence, np.zeros((1, 4)))


def test_no_end_token_is_predicted_when_it_is_forbidden():
    model = TableModel(seed=3, favourite=EOS)
    config = dataclasses.replace(CONFIG, logits_eos_inf=True)
    assert EOS in sample_trace(model, PROMPT, CONFIG).tokens
    assert EOS not in sample_trace(model, PROMPT, config).tokens


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_masks_are_predicted_by_the_release_only(temperature):
    model = TableModel(seed=3, favourite=MASK)
    config = dataclasses.replace(CONFIG, temperature=temperature)
    assert MASK not in sample_trace(model, PROMPT, config, generator=SEED).tokens
    official = dataclasses.replace(config, compat="official-2025")
    trace = sample_trace(model, PROMPT, official, generator=SEED)
    np.testing.assert_array_equal(trace.tokens, MASK)


def ending_model(slot):
    """Predicts the end token at one place of the answer, for a prompt of five tokens."""

    def change(table):
        table[:, EOS] = -64
        table[5 + slot, EOS] = 64

    return with_table(change)


@pytest.mark.parametrize("compat", [None, "official-2025"])
@pytest.mark.parametrize("slot", [0, 3, 5, 11])
def test_stopping_fills_the_rest_with_end_tokens_and_saves_the_calls(slot, compat):
    model, calls = ending_model(slot), []
    config = dataclasses.replace(CONFIG, compat=compat)
    full = sample_trace(model, PROMPT, config)
    config = dataclasses.replace(config, stop_at_eos=True)
    head = model.head
    model.head = lambda hidden: calls.append(1) or head(hidden)
    trace = sample_trace(model, PROMPT, config)
    finished = (slot // 4 + 1) * 4
    np.testing.assert_array_equal(trace.tokens[:, :finished], full.tokens[:, :finished])
    np.testing.assert_array_equal(trace.tokens[:, finished:], EOS)
    assert trace.num_steps == len(calls) == finished // 4 * 2
    assert len(list(sample_stepwise(model, PROMPT, config))) == trace.num_steps
    assert (trace.confidence[:, finished:] == 0).all()


def test_a_row_that_stops_does_not_disturb_the_others():
    model = ending_model(1)
    config = dataclasses.replace(CONFIG, stop_at_eos=True)
    # The second prompt is longer, so its answer never reaches the place of the end token.
    prompts = np.array([[0, 0, *PROMPT[0]], [1, 2, 3, 4, 5, 6, 7]])
    visible = np.array([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    both = sample_trace(model, prompts, config, visible)
    first = sample_trace(model, PROMPT, config)
    second = sample_trace(model, prompts[1:], config)
    np.testing.assert_array_equal(both.tokens[0], first.tokens[0])
    np.testing.assert_array_equal(both.tokens[1], second.tokens[0])
    assert EOS not in second.tokens
    assert (both.num_steps, first.num_steps) == (6, 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masks_in_a_prompt_take_part_as_in_the_release(temperature):
    prompt = np.array([[4, MASK, 15, MASK, 23], [1, 2, 3, 4, 5]])
    config = dataclasses.replace(CONFIG, compat="official-2025", temperature=temperature)
    tokens = sample(MODEL, prompt, config, generator=[RowSeed(1), RowSeed(2)]).cpu()
    if not temperature:
        expected = list(plain_loop(logits_of(MODEL), prompt, config, MODEL.config))
        np.testing.assert_array_equal(tokens, expected[-1])
        assert MASK in expected[-1][0]  # they use up the budget of the blocks
    alone = sample(MODEL, prompt[:1], config, generator=[RowSeed(1)]).cpu()
    np.testing.assert_array_equal(alone[0], tokens[0])


def test_masks_under_padding_are_not_seen():
    prompt = np.array([[MASK, MASK, *PROMPT[0]]])
    tokens = sample(MODEL, prompt, CONFIG, np.array([[0, 0, 1, 1, 1, 1, 1]])).cpu()
    np.testing.assert_array_equal(tokens[:, 7:], sample(MODEL, PROMPT, CONFIG).cpu()[:, 5:])


def test_holes_in_the_attention_mask_keep_their_places():
    mask = np.array([[1, 0, 1, 1, 1]])
    (*_, expected) = plain_loop(logits_of(MODEL), PROMPT, CONFIG, MODEL.config, mask)
    np.testing.assert_array_equal(sample(MODEL, PROMPT, CONFIG, mask).cpu(), expected)


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ([1, 2], {}, r"shape \(2,\); expected \[rows, tokens\]"),
        (np.zeros((0, 3), int), {}, r"shape \(0, 3\)"),
        ([[1.0, 2.0]], {}, "float64; expected integer"),
        (torch.tensor([[1.0]]), {}, "float32; expected integer"),
        ([[1, 32]], {}, "row 0 holds id 32 at position 1, outside the 32 rows"),
        ([[1, 2], [-1, 3]], {}, "row 1 holds id -1 at position 0"),
        ([[1, MASK, 2]], {}, f"holds the mask id {MASK} at position 1"),
        ([[1, 2]], {"attention_mask": [[1]]}, r"attention_mask has shape \(1, 1\)"),
    ],
)
def test_wrong_input_is_told(prompt, arguments, message):
    with pytest.raises(UserError, match=message):
        sample(MODEL, prompt, CONFIG, **arguments)
