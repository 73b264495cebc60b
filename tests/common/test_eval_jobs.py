"""Which settings an evaluation comes to: the user's, then the recipe's, then the defaults."""

from types import SimpleNamespace

import pytest

from jaxllada.apps.evaluation.checks import check_task
from jaxllada.apps.evaluation.jobs import _set_examples, jobs_of, name_of
from jaxllada.apps.evaluation.keys import EvalOptions
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.recipes import recipe
from jaxllada.common.errors import UserError

GSM8K, PURE, ARC = "gsm8k@llada-instruct", "gsm8k-pure@llada-instruct", "arc-c@llada-base"


def options(**keys):
    return EvalOptions(**{"model_name_or_path": "model"} | keys)


def job(**keys):
    (found,) = jobs_of(options(**keys))
    return found


def test_keys_that_are_given_change_a_recipe_and_are_told():
    plain, changed = job(recipe=(GSM8K,)), job(recipe=(GSM8K,), steps=64, num_fewshot=0, cfg=0.5)
    given = recipe(GSM8K)
    assert plain.manner.sampling == given.sampling
    assert plain.changed == ()
    expected = given.sampling | {"steps": 64, "cfg_scale": 0.5}
    assert changed.manner.sampling == expected
    assert (changed.chat, changed.num_fewshot) == (given.chat, 0)
    assert {"steps", "cfg_scale"} <= set(changed.changed)
    assert ("num_fewshot" in changed.changed) == (given.num_fewshot != 0)


def test_a_preset_takes_the_place_of_the_settings_of_a_recipe(tmp_path):
    text = "gen_length: 64\nblock_length: 16\nselection: threshold:0.9"
    (tmp_path / "mine.yaml").write_text(text)
    assert recipe(PURE).sampling["confidence_eos_eot_inf"]
    found = job(recipe=(PURE,), preset=str(tmp_path / "mine.yaml"), steps=32)
    assert found.manner.sampling == {
        "gen_length": 64, "block_length": 16, "selection": "threshold:0.9", "steps": 32
    }  # fmt: skip
    assert found.tasks == recipe(PURE).tasks


def test_likelihoods_take_the_recipe_and_what_is_given_beside_it():
    given = recipe(ARC).likelihood
    plain, changed = job(recipe=(ARC,)), job(recipe=(ARC,), mc_num=8, cfg_scale=0.5, seed=7)
    for key, value in given.items():
        if key != "add_bos":
            assert getattr(plain.manner.likelihood, key) == value
    assert plain.changed == ()
    estimate = changed.manner.likelihood
    assert (estimate.mc_num, estimate.cfg_scale, estimate.seed) == (8, 0.5, 7)
    assert 8 % estimate.batch_size == 0
    assert {"mc_num", "cfg_scale"} <= set(changed.changed)


@pytest.mark.parametrize(
    ("keys", "batch"),
    [
        ({}, 16), ({"mc_num": 1}, 1), ({"mc_num": 6}, 6), ({"mc_num": 24}, 12),
        ({"mc_num": 34}, 2), ({"mc_num": 64, "mc_batch_size": 32}, 32),
    ],
)  # fmt: skip
def test_rounds_divide_the_masks(keys, batch):
    estimate = job(tasks=("piqa",), **keys).manner.likelihood
    assert estimate.batch_size == batch
    assert estimate.rows_per_call >= batch


def test_names_of_the_released_evaluation_mean_the_same():
    ours = job(tasks=("piqa",), cfg_scale=0.5, block_length=8, greedy_check=True, chat=True)
    theirs = job(
        tasks=("piqa",), cfg=0.5, block_size=8, is_check_greedy=True, apply_chat_template=True
    )
    assert ours == theirs
    assert (ours.chat, ours.manner.keeps_blanks) == (True, True)
    assert not job(tasks=("piqa",)).manner.keeps_blanks
    assert ours.manner.sampling["block_length"] == 8
    assert ours.manner.likelihood.block_length is None  # that of sampling; attention is full
    causal = job(tasks=("piqa",), attention="block_causal", block_size=8).manner.likelihood
    assert (causal.attention, causal.block_length) == ("block_causal", 8)


def test_tasks_and_recipes_are_jobs_of_their_own():
    found = jobs_of(options(recipe=(GSM8K, ARC), tasks=("piqa", "mine/my_task.yaml")))
    assert [one.name for one in found] == [GSM8K, ARC, "piqa,my_task"]
    assert found[2].recipe is None
    assert name_of(("a/questions.jsonl",)) == "questions"


def task(kind="multiple_choice", metrics=("acc",), judges=None, shots=None, **others):
    config = SimpleNamespace(num_fewshot=shots, process_results=judges)
    found = SimpleNamespace(
        OUTPUT_TYPE=kind, _metric_fn_list=dict.fromkeys(metrics), config=config, **others
    )
    found.set_config = lambda key, value: setattr(config, key, value)
    return found


def check(found, *, num_fewshot=None, confirm_run_unsafe_code=False, **keys):
    check_task("t", found, num_fewshot, LikelihoodConfig(**keys), confirm_run_unsafe_code)


def test_examples_are_those_given_then_the_tasks_then_none():
    for own, given, expected in ((None, None, 0), (5, None, 5), (5, 2, 2), (None, 2, 2), (5, 0, 0)):
        found = task(shots=own)
        _set_examples(found, given)
        assert found.config.num_fewshot == expected


@pytest.mark.parametrize(
    ("found", "keys", "message"),
    [
        (task("loglikelihood", ("acc", "perplexity")), {}, "greedy_check=false with task t"),
        (task(metrics=("exact_match",)), {}, "its metric exact_match asks"),
        (task(metrics=("acc", "mc2")), {"stop_level": 0.9}, "stop_level=0.9 with task t: mc2"),
        (task(judges=len), {"stop_level": 0.9}, "stop_level=0.9 with task t: process_results"),
        (task(shots=0), {"num_fewshot": 3}, "num_fewshot=3: task t takes none"),
        (task(UNSAFE_CODE=True), {}, "confirm_run_unsafe_code=true allows it"),
        (task(MULTIMODAL=True), {}, "pictures or sound"),
    ],
)
def test_tasks_and_settings_that_do_not_fit_are_refused(found, keys, message):
    with pytest.raises(UserError, match=message):
        check(found, **keys)


def test_what_a_task_does_not_need_is_not_refused(monkeypatch):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")  # so that it is set back
    check(task("loglikelihood", ("perplexity",)))
    check(task("loglikelihood", ("acc",)), greedy_check=True)
    check(task("loglikelihood", ("acc",), judges=len))
    check(task(metrics=("acc", "acc_norm")), stop_level=0.9)
    check(task("generate_until", ("exact_match",)), stop_level=0.9)
    check(task(UNSAFE_CODE=True), confirm_run_unsafe_code=True)
