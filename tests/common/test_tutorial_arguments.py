"""The arguments of other programs for evaluating LLaDA, in the words of the verb `eval`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from jaxllada.apps.evaluation.jobs import jobs_of
from jaxllada.apps.evaluation.keys import EvalOptions
from jaxllada.apps.sampling_keys import completed
from jaxllada.common.config.load import load_config

GUIDE = Path(__file__).parents[2] / "launch" / "ASCEND.md"
PLAIN = ["model", "--tasks", "gsm8k"]


def job(*words):
    (found,) = jobs_of(load_config(EvalOptions, [*PLAIN, *words]))
    return found


def settled(found):
    """All that decides what is asked, with the defaults of the verb."""
    return found.chat, found.num_fewshot, found.manner.likelihood, found.manner.sampling


# What dllm's and the authors' programs take -> what it has to set here.
MEANT = {
    "mc_num=1": lambda job: replace(job.manner.likelihood, mc_num=1, batch_size=1),
    "max_length=1024": {"gen_length": 1024},
    "max_new_tokens=1024": {"gen_length": 1024},
    "gen_length=1024": {"gen_length": 1024},
    "steps=256": {"steps": 256},
    "block_size=64": {"block_length": 64},
    "block_length=64": {"block_length": 64},
    "cfg=0.5": {"cfg_scale": 0.5},
    "remasking=random": {"remasking": "random"},
    "is_check_greedy=True": lambda job: replace(job.manner.likelihood, greedy_check=True),
    "--apply_chat_template": True,
    "--num_fewshot 5": 5,
}


def table():
    """Rows of the guide: theirs -> words for `eval`."""
    rows = re.findall(r"^\| `([^`|]+)`(?: \([^|]*\))? \| `([^`|]+)`", GUIDE.read_text(), re.M)
    return {theirs: ours.split() for theirs, ours in rows if theirs in MEANT}


@pytest.mark.parametrize("theirs", MEANT)
def test_the_guide_translates_an_argument_into_one_that_does_the_same(theirs):
    found, meant, before = job(*table()[theirs]), MEANT[theirs], job()
    assert settled(found) != settled(before)
    if callable(meant):
        assert found.manner.likelihood == meant(before)
    elif isinstance(meant, dict):
        assert found.manner.sampling == meant
    else:
        assert (found.chat or found.num_fewshot) == meant


def test_the_tutorials_arguments_can_be_run_together():
    given = ["mc_num=1", "max_length=1024", "steps=256", "block_size=64", "--apply_chat_template"]
    found = job(*[word for one in given for word in table()[one]], "--cfg", "0.0",
                "--is_check_greedy", "false", "--num_fewshot", "5")  # fmt: skip
    config = completed(found.manner.sampling, room=3000)
    assert (config.gen_length, config.block_length, config.num_blocks) == (1024, 64, 16)
    assert (config.steps, config.steps_per_block, config.cfg_scale) == (256, 16, 0.0)
    assert (found.manner.likelihood.mc_num, found.manner.likelihood.greedy_check) == (1, False)
    assert (found.chat, found.num_fewshot) == (True, 5)
