"""Properties of prompt/answer rows: what counts, what is cut, and which row is named."""

import numpy as np
import pytest

from jaxllada.common.data import sft
from jaxllada.common.data.bad_rows import BadRow
from jaxllada.common.data.preparing import prepare_sources
from jaxllada.common.data.rows import Row
from jaxllada.common.data.sources import load_rows
from jaxllada.common.errors import UserError
from tests.common.row_files import *  # noqa: F403
from tests.common.row_files import TEXTS, _own_data_caches, options, write  # noqa: F401

LONG = {"messages": [{"role": "user", "content": "w " * 40}, {"role": "assistant", "content": "a"}]}
QUESTION = {"role": "user", "content": "2 + 2?"}
REPLY = {"role": "assistant", "content": "4"}
MORE = {"role": "user", "content": "sure?"}
AGAIN = {"role": "assistant", "content": "yes indeed"}


def sft_rows(tmp_path, tokenizer, rows, **changes):
    path = write(tmp_path / "s.jsonl", rows)
    change = {"max_length": 200} | changes
    return load_rows(f"{path}[test:0]", tokenizer, options(tmp_path, **change))["train"]


def test_a_pair_counts_its_answer_and_not_its_prompt(tmp_path, tokenizer):
    rows = sft_rows(tmp_path, tokenizer, [{"instruction": "2 + 2?", "input": "", "output": "4"}])
    row = rows[0]
    assert rows.pad_policy == "eos_supervised"
    assert tokenizer.decode(row.tokens) == tokenizer.render([QUESTION, REPLY])
    assert tokenizer.decode(row.tokens[~row.maskable]) == tokenizer.render([QUESTION])
    assert tokenizer.decode(row.tokens[row.maskable]) == "4<|eot_id|>"


def test_every_answer_of_a_dialogue_can_be_drawn(tmp_path, tokenizer):
    dialogue = [QUESTION, REPLY, MORE, AGAIN, MORE]
    rows = sft_rows(tmp_path, tokenizer, [{"messages": dialogue}])
    row = rows[0]
    assert len(row.turns) == 2
    for number, (upto, answer) in enumerate(((1, "4"), (3, "yes indeed"))):
        turn = row.turn(number)
        assert tokenizer.decode(turn.tokens) == tokenizer.render(dialogue[: upto + 1])
        assert tokenizer.decode(turn.tokens[turn.maskable]) == f"{answer}<|eot_id|>"
    last = sft_rows(tmp_path, tokenizer, [{"messages": dialogue}], dialogue_turns="last")[0]
    assert last.turns == ()
    assert tokenizer.decode(last.tokens[last.maskable]) == "yes indeed<|eot_id|>"


def test_prompts_can_be_counted_too(tmp_path, tokenizer):
    row = sft_rows(tmp_path, tokenizer, [{"prompt": "q", "response": "a"}], mask_prompt_loss=False)
    assert row[0].maskable.all()


def test_preprocessed_rows_keep_their_labels(tmp_path, tokenizer):
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "prompt_len": 1},
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "prompt_len": 1},
    ]
    found = sft_rows(tmp_path, tokenizer, rows)
    assert [found[i].tokens.tolist() for i in range(2)] == [[5, 6, 7], [5, 6, 7, 8]]
    assert found[1].maskable.tolist() == [False, True, False, True]
    plain = sft_rows(tmp_path, tokenizer, [{"input_ids": [5, 6, 7], "prompt_len": 2}])
    assert plain[0].maskable.tolist() == [False, False, True]
    padded = {"input_ids": [5, 6, 0], "prompt_len": 1, "attention_mask": [1, 1, 0]}
    assert sft_rows(tmp_path, tokenizer, [padded])[0].tokens.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [5, 6], "labels": [5], "prompt_len": 0}, "2 input_ids but 1 labels"),
        ({"input_ids": [5, 6], "labels": [6, 7], "prompt_len": 0}, "do not shift"),
        ({"input_ids": [5, 6], "prompt_len": 3}, "prompt_len=3 of 2"),
        ({"messages": [QUESTION]}, "has no answer"),
        ({"messages": [REPLY]}, "begins with an answer"),
        ({"messages": [{"role": "bot", "content": ""}]}, r"s.jsonl:1: messages\[0\].role='bot'"),
        ({"prompt": "<|mdm_mask|>", "response": "a"}, "holds the mask token"),
    ],
)
def test_a_bad_pair_is_named(tmp_path, tokenizer, row, message):
    with pytest.raises(UserError, match=message):
        sft_rows(tmp_path, tokenizer, [row])


def row_of(size, prompt, turns=()):
    return Row(np.arange(size, dtype=np.int32), np.arange(size) >= prompt, turns)


@pytest.mark.parametrize(
    ("row", "truncation", "length"),
    [
        (row_of(10, 3), "right", 10),
        (row_of(11, 3), "right", 10),
        (row_of(20, 10), "right", None),
        (row_of(20, 9), "right", 10),
        (row_of(11, 3), "filter", None),
        (row_of(10, 3), "filter", 10),
        (row_of(20, 3, ((3, 6), (8, 20))), "right", 10),
        (row_of(20, 3, ((3, 6), (8, 20))), "filter", 6),
        (row_of(20, 12, ((12, 14), (18, 20))), "right", None),
    ],
)
def test_long_rows_are_cut_or_left_out(row, truncation, length):
    if length is None:
        with pytest.raises(BadRow, match="max_length=10"):
            sft.fitted(row, 10, truncation)
    else:
        kept = sft.fitted(row, 10, truncation)
        assert len(kept.tokens) == length
        np.testing.assert_array_equal(kept.tokens, row.tokens[:length])
        assert all(end <= 10 for _, end in kept.turns)


def test_rows_left_out_are_counted_and_none_left_is_an_error(tmp_path, tokenizer):
    rows = [LONG, {"messages": [QUESTION, REPLY]}]
    path = write(tmp_path / "s.jsonl", rows)
    change = dict(max_length=50, truncation="filter")
    _, facts = prepare_sources(f"{path}[test:0]", tokenizer, options(tmp_path, **change))[0]
    assert (facts["splits"]["train"]["rows"], facts["splits"]["train"]["dropped"]) == (1, 1)
    assert facts["splits"]["train"]["left_out"] == {"with too long a prompt": 1}
    message = "no row of .*train can be used; the first: .*s.jsonl:1: the prompt has .*max_length=5"
    with pytest.raises(UserError, match=message):
        load_rows(f"{path}[test:0]", tokenizer, options(tmp_path, max_length=5))


def test_text_and_pairs_do_not_mix(tmp_path, tokenizer):
    text = write(tmp_path / "a.jsonl", [{"text": t} for t in TEXTS])
    pairs = write(tmp_path / "b.jsonl", [{"prompt": "q", "response": "a"}] * 30)
    for streaming in (False, True):
        change = dict(streaming=streaming, max_length=64)
        with pytest.raises(UserError, match="cannot be mixed"):
            load_rows(f"{text}+{pairs}", tokenizer, options(tmp_path, **change))
