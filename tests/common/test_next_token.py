"""Next-token rows, data that is repeated, bytes of text, and tokenizers without a mask token."""

import dataclasses
import json

import numpy as np
import pytest

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.qwen2 import twin_of
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import BatchSource, evaluation_batches
from jaxllada.common.data.next_token import shifted
from jaxllada.common.errors import UserError
from jaxllada.common.run.evaluation import Evaluation, text_bytes
from jaxllada.common.run.inputs import Share, train_source
from jaxllada.common.tokenizer import NO_MASK, Tokenizer

ROWS = np.arange(40, dtype=np.int32).reshape(10, 4) + 1
TWIN = dataclasses.replace(twin_of(PRESETS["tiny"]), eos_token_id=99, pad_token_id=99)


def test_every_position_sees_the_token_before_it():
    counted = np.array([False, True, True])
    found = shifted(np.array([5, 6, 7]), counted, start_id=9)
    np.testing.assert_array_equal(found.noisy, [9, 5, 6])
    np.testing.assert_array_equal(found.is_masked, counted)
    assert found.mask_rate == 1


def test_batches_of_both_objectives_hold_the_same_rows_in_the_same_order():
    shared = {"seed": 3, "micro_batch": 2, "pad_id": 99, "max_length": 4, "accumulation": 2}
    masked = BatchSource(ROWS, mask_id=90, **shared).batch(1)
    causal = BatchSource(ROWS, mask_id=None, start_id=99, **shared).batch(1)
    np.testing.assert_array_equal(masked.tokens, causal.tokens)
    np.testing.assert_array_equal(masked.maskable, causal.maskable)
    np.testing.assert_array_equal(causal.noisy[..., 1:], causal.tokens[..., :-1])
    assert (causal.noisy[..., 0] == 99).all()
    assert (causal.mask_rate == 1).all()
    np.testing.assert_array_equal(causal.is_masked, causal.maskable)


def test_evaluation_of_a_causal_model_has_no_noise_and_counts_each_row_once():
    def batches(seed):
        return list(
            evaluation_batches(
                ROWS, seed=seed, batch_size=4, mask_id=None, start_id=99, pad_id=99, max_length=4
            )
        )

    first, second = batches(0), batches(1)
    for a, b in zip(first, second, strict=True):
        assert a.digest() == b.digest()
    assert sum(int(batch.maskable.sum()) for batch in first) == ROWS.size


@pytest.mark.parametrize("times", [1, 2, 4])
def test_repeated_data_shows_each_chosen_row_equally_often(times):
    config = TrainConfig(
        max_steps=4, max_length=4, per_device_train_batch_size=2, repeat_data=times
    )
    source = train_source(config, ROWS, TWIN, Share(0, 1, 1))
    seen = np.concatenate([source.batch(step).tokens[0, :, 0] for step in range(4)])
    _, counts = np.unique(seen, return_counts=True)
    assert (counts == times).all()
    assert len(counts) == 8 // times
    fewer = dataclasses.replace(config, repeat_data=8)
    inside = train_source(fewer, ROWS, TWIN, Share(0, 1, 1)).batch(0).tokens[0, :, 0]
    assert set(inside) <= set(seen)


def test_repeated_data_needs_enough_rows_and_a_number_of_steps():
    config = TrainConfig(max_steps=9, max_length=4, per_device_train_batch_size=2, repeat_data=1)
    with pytest.raises(UserError, match="repeat_data=1: 9 steps need 18 rows"):
        train_source(config, ROWS, TWIN, Share(0, 1, 1))
    with pytest.raises(UserError, match="repeat_data"):
        TrainConfig(repeat_data=2)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the mask hides — one naïve word"], 270)


def test_bytes_of_tokens_are_those_of_their_text(tokenizer):
    text = "the naïve word — hides 😀"
    ids = tokenizer.encode(text)
    lengths = tokenizer.byte_lengths
    assert sum(lengths[i] for i in ids) == len(text.encode())
    assert lengths[tokenizer.eos_id] == lengths[tokenizer.mask_id] == 0
    from jaxllada.common.data.rows import RaggedRows, Row

    rows = RaggedRows([Row(np.array([*ids, tokenizer.eos_id]), np.ones(len(ids) + 1, bool))] * 3)
    assert text_bytes(rows, 2, lengths) == 2 * len(text.encode())
    half = RaggedRows([Row(np.array(ids), np.arange(len(ids)) >= 3)])
    assert text_bytes(half, 0, lengths) == sum(lengths[i] for i in ids[3:])


def test_nats_per_byte_are_nats_over_bytes():
    found = Evaluation(
        bound=2.0, standard_error=0.1, accuracy=0.5, nll_by_rate=(), accuracy_by_rate=(),
        rows=1, tokens=30, draws=1, bytes=40,
    )  # fmt: skip
    assert found.bound_per_byte == 1.5
    assert dataclasses.replace(found, bytes=None).bound_per_byte is None


def test_a_tokenizer_without_mask_is_for_causal_models_alone(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("<|mdm_mask|>", "<|im_pad|>"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = json.loads((tmp_path / name).read_text())
        values.pop("mask_token")
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(UserError, match="no mask token"):
        Tokenizer.from_folder(tmp_path)
    found = Tokenizer.from_folder(tmp_path, needs_mask=False)
    assert found.mask_id == NO_MASK
    rows = found.vocab_size
    twin = dataclasses.replace(TWIN, vocab_size=rows, embedding_size=rows)
    found.agree_with(twin)
    with pytest.raises(UserError, match="mask"):
        found.agree_with(dataclasses.replace(PRESETS["tiny"], vocab_size=rows, embedding_size=rows))
