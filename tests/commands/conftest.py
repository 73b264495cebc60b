"""A released folder with a tokenizer, for the tests of several verbs."""

import dataclasses

import pytest

from jaxllada.common.tokenizer import Tokenizer
from tests.commands.converted import TINY, write_model


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["one two three four five six seven eight nine ten"] * 3, 280)


@pytest.fixture
def hf(tmp_path, tokenizer):
    """A released folder in several shards, with a tokenizer that fits."""
    ids = {"mask": tokenizer.mask_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    config = dataclasses.replace(
        TINY, vocab_size=280, embedding_size=288, **{f"{k}_token_id": v for k, v in ids.items()}
    )
    folder = write_model(tmp_path / "hf", config, shard_bytes=20_000)
    tokenizer.save(folder)
    (folder / "generation_config.json").write_bytes(b'{"eos_token_id":  1}\r\n')
    return folder
