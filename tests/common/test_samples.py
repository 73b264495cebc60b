"""Probe prompts of a run: continued texts, or questions answered in the chat template."""

import numpy as np
import pytest

from jaxllada.common.config.sft import SftConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.rows import RaggedRows, Row
from jaxllada.common.run.samples import page_writer, probes_of
from jaxllada.common.tokenizer import Tokenizer

TEXTS = ["Say red", "red red", "user assistant"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 300)


class Engine:
    """Answers with given texts, one after the other."""

    def __init__(self, tokenizer, *answers):
        self.tokenizer, self.answers, self.asked = tokenizer, list(answers), []

    def generate(self, prompts, config, seed=0, on_update=None):
        self.asked += [(list(ids), config) for ids in prompts]
        ids = self.tokenizer.encode(self.answers.pop(0))

        class Answer:
            tokens = ids

        return [Answer]


def answers(tokenizer):
    ids = tokenizer.chat([{"role": "user", "content": "Say red"}])
    tokens = np.array([*ids, *tokenizer.encode("red<|eot_id|>")], np.int32)
    return RaggedRows([Row(tokens, np.arange(len(tokens)) >= len(ids))] * 3)


def test_questions_are_asked_in_the_chat_template_and_answers_end_where_they_end(tokenizer):
    config = SftConfig(sample_prompts=("Say red", "Say it"), sample_length=8)
    probes = probes_of(config, tokenizer, {"train": answers(tokenizer)})
    write = page_writer(config, tokenizer, probes)
    engine = Engine(tokenizer, "red red<|eot_id|>red", "<|endoftext|><|endoftext|>")
    page = write(engine)
    expected = [tokenizer.chat([{"role": "user", "content": t}]) for t in config.sample_prompts]
    assert [ids for ids, _ in engine.asked] == expected
    assert {options.gen_length for _, options in engine.asked} == {8}
    first, second = page.text.split("\n\n----\n\n")
    assert first == "> Say red\nred red"
    assert second == "> Say it\n(nothing: it begins with an end token)\n"
    assert (page.answers, page.empty) == (2, 1)


def test_without_questions_those_of_the_data_are_asked(tokenizer):
    rows = answers(tokenizer)
    probes = probes_of(SftConfig(), tokenizer, {"train": rows, "test": rows})
    prompt = tokenizer.chat([{"role": "user", "content": "Say red"}])
    assert probes.prompts == [prompt, prompt]
    assert probes.are_questions


def test_texts_are_continued_as_they_are(tokenizer):
    config = TrainConfig(sample_prompts=("red", ""), sample_length=8)
    probes = probes_of(config, tokenizer, {"train": np.zeros((2, 8), np.int32)})
    assert probes.prompts == [tokenizer.encode("red"), [tokenizer.eos_id]]
    page = page_writer(config, tokenizer, probes)(Engine(tokenizer, " red", "Say"))
    assert page.text == "red red\n\n----\n\n<|endoftext|>Say\n"
    assert page.answers == 0
    assert page_writer(TrainConfig(sample_length=0), tokenizer, probes) is None
