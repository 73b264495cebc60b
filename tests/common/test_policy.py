"""What a sampler decides by: which option sets which switch, and what cannot go together."""

import dataclasses

import numpy as np
import pytest

from jaxllada.common.answer_rows import lay_out
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.policy import Policy
from tests.plain_loop import TABLE_CONFIG

EOS, MASK, EOT = TABLE_CONFIG.eos_token_id, TABLE_CONFIG.mask_token_id, 29
CONFIG = SamplingConfig(steps=8, gen_length=8, block_length=4)
HOLD = {"confidence_eos_eot_inf": True, "eot_token_id": EOT}
RELEASE = {"compat": "official-2025"}


def policy(window=4, **options):
    return Policy.of(dataclasses.replace(CONFIG, **options), TABLE_CONFIG, window)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, {}),
        ({"temperature": 0.5}, {"is_noisy": True}),
        ({"cfg_scale": 0.5}, {"is_guided": True}),
        ({"remasking": "random"}, {"rank": "random"}),
        ({"selection": "margin"}, {"rank": "margin"}),
        ({"selection": "threshold:0.9"}, {"extra": "threshold"}),
        ({"selection": "threshold:0.9,decay=0.5"}, {"extra": "threshold", "has_decay": True}),
        ({"selection": "credit:0.9"}, {"extra": "threshold", "has_credit": True}),
        ({"selection": "dream:entropy"}, {"rank": "entropy", "ranks_draws": True}),
        ({"selection": "dream:origin"}, {"rank": "random", "ranks_draws": True}),
        (
            {"selection": "dream:maskgit_plus,alg_temp=0.5"},
            {"is_shuffled": True, "ranks_draws": True},
        ),
        ({"top_p": 0.9}, {"has_top_p": True, "ranks_draws": True}),
        ({"top_k": 3}, {"has_top_k": True, "ranks_draws": True}),
        ({"logits_eos_inf": True}, {"never_eos": True}),
        ({"stop_at_eos": True}, {"stop_at_eos": True}),
        (HOLD, {"end_ids": (EOS, EOT)}),
        ({"confidence_eos_eot_inf": True}, {"end_ids": (EOS,)}),
        ({"eot_token_id": EOT}, {}),
        (RELEASE, {"never_mask": False}),
        (RELEASE | HOLD, {"never_mask": False, "zeroed_ids": (EOS, EOT)}),
        # With noise the release writes to a copy, and the end of the sequence stays likely.
        (
            RELEASE | HOLD | {"temperature": 0.5},
            {"never_mask": False, "zeroed_ids": (EOT,), "is_noisy": True},
        ),
        ({"attention": "block_causal"}, {"is_block_causal": True}),
        ({"smoothing": "soft"}, {"is_smooth": True}),
        ({"smoothing": "soft:reach=canvas"}, {"is_smooth": True, "reads_ahead": True}),
        (
            {"end_think_token_ids": (5, 6), "end_think_logit_boost": 1.0},
            {"end_think_ids": (5, 6)},
        ),
    ],
)
def test_an_option_sets_its_own_switch_and_no_other(options, changed):
    plain, found = policy(), policy(**options)
    assert plain == Policy(
        mask_id=MASK, eos_id=EOS, block_length=4, window=4, is_noisy=False, is_guided=False,
        rank="probability", extra="", has_credit=False, has_decay=False, is_shuffled=False,
        has_top_p=False, has_top_k=False, ranks_draws=False, never_eos=False, never_mask=True,
        end_ids=(), zeroed_ids=(), stop_at_eos=False, end_think_ids=(), cache=CONFIG.cache_rule,
        is_block_causal=False, answer_length=0, is_smooth=False, reads_ahead=False,
    )  # fmt: skip
    assert found == dataclasses.replace(plain, **changed)


def test_only_the_cache_of_all_layers_has_a_room_for_every_token_of_the_answer():
    for cache, room in (("dual", 0), ("prefix", 0), ("vicinity:1,1,1", 0), ("dllm:4,2,0.5", 8)):
        found = policy(cache=cache)
        assert (found.answer_length, found.cache) == (room, found.cache)
        assert type(found.cache).__name__ != type(CONFIG.cache_rule).__name__


@pytest.mark.parametrize(
    ("options", "draws"),
    [
        ({}, False),
        ({"remasking": "random"}, True),
        ({"selection": "dream:origin"}, True),
        ({"selection": "dream:entropy,alg_temp=0.1"}, True),
        ({"selection": "dream:entropy"}, False),
    ],
)
def test_an_order_is_drawn_where_its_rank_is_random_or_has_a_temperature(options, draws):
    assert policy(**options).draws_order == draws


def test_a_window_is_wide_where_it_is_more_than_a_block():
    assert [policy(window).is_wide for window in (3, 4, 5)] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "dual"}, "cache=dual is for an answer behind the prompt"),
        (
            {"end_think_token_ids": (5,), "end_think_logit_boost": 1.0},
            "end_think_token_ids is for answers behind a prompt",
        ),
    ],
)
def test_what_needs_an_answer_behind_the_prompt_is_refused_where_masks_are_in_it(options, message):
    assert policy(4, **options)
    with pytest.raises(UserError, match=message):
        policy(5, **options)
    assert policy(5).window == 5
    prompt = np.array([[3, MASK, 4]])
    config = dataclasses.replace(CONFIG, **RELEASE, **options)
    with pytest.raises(UserError, match=message):
        lay_out(TABLE_CONFIG, prompt, config).canvas(np.array([0]), 1, 0, 0)


@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens"])
def test_ids_must_be_rows_of_the_embedding(name):
    last = TABLE_CONFIG.rows - 1
    assert policy(**{name: (last,)}) == policy()
    with pytest.raises(UserError, match=f"{name} holds {last + 1}, outside the 32 rows"):
        policy(**{name: (0, last + 1)})
