"""Properties of tokenizers trained here and read from folders, and of the chat template."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllada.common import chat
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.vocabulary import CHAT_TOKENS, SPECIAL_TOKENS

TEXTS = ["def main():\n    return 12345 + x\n", "The quick brown fox.", "床前明月光"] * 20
USER = {"role": "user", "content": " hello\n"}
ANSWER = {"role": "assistant", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_exactly(text):
    known = test_any_text_comes_back_exactly.tokenizer  # pyright: ignore
    ids = known.encode(text)
    assert known.decode(ids) == text
    assert all(0 <= i < known.vocab_size for i in ids)


test_any_text_comes_back_exactly.tokenizer = Tokenizer.train(TEXTS, 300)  # pyright: ignore


def test_special_tokens_are_single_ids_at_the_end(tokenizer):
    ids = [tokenizer.core.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(tokenizer.vocab_size - 6, tokenizer.vocab_size))
    for token, number in zip(SPECIAL_TOKENS, ids, strict=True):
        assert tokenizer.encode(f"a{token}b")[1:-1] == [number]
        assert tokenizer.decode([number]) == token
        assert tokenizer.decode([number], skip_special_tokens=True) == ""
    bos, eos, mask, _, _, eot = ids
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (bos, eos, mask)
    assert (tokenizer.pad_id, tokenizer.eot_id) == (eos, eot)


def test_digits_are_split_and_words_are_not(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345")] == list("12345")
    assert len(tokenizer.encode(" quick")) == 1


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert Tokenizer.train(TEXTS, 400).digest() == tokenizer.digest()
    assert Tokenizer.train(TEXTS, 300).digest() != tokenizer.digest()


@pytest.mark.parametrize("parallel", [False, True])
def test_encoding_many_equals_encoding_each(tokenizer, parallel):
    many = tokenizer.encode_batch(TEXTS, parallel=parallel)
    assert many == [tokenizer.encode(text) for text in TEXTS]


def test_a_folder_comes_back_as_it_was(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    assert again.digest() == tokenizer.digest()
    assert again.chat([USER]) == tokenizer.chat([USER])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(UserError, match="vocab_size=261: must be at least 262"):
        Tokenizer.train(TEXTS, 261)
    assert Tokenizer.train(TEXTS, 262).vocab_size == 262


def test_a_release_without_declared_mask_is_read_by_its_name(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    eos = {"content": "<|endoftext|>", "lstrip": False}
    write(tmp_path, "tokenizer_config.json", {"eos_token": eos, "pad_token": "<|endoftext|>"})
    write(tmp_path, "special_tokens_map.json", {})
    again = Tokenizer.from_folder(tmp_path)
    assert again.mask_id == tokenizer.mask_id
    assert again.eos_id == again.pad_id == tokenizer.eos_id
    write(tmp_path, "config.json", {"mask_token_id": tokenizer.mask_id})
    assert Tokenizer.from_folder(tmp_path).mask_id == tokenizer.mask_id


def test_disagreeing_mask_ids_are_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    write(tmp_path, "config.json", {"mask_token_id": 7})
    with pytest.raises(UserError, match=r"disagree: config.json mask_token_id = 7, mask_token = "):
        Tokenizer.from_folder(tmp_path)


def test_a_model_that_cannot_use_the_ids_is_refused(tokenizer):
    def model(rows, mask):
        return SimpleNamespace(rows=rows, mask_token_id=mask)

    tokenizer.agree_with(model(tokenizer.vocab_size, tokenizer.mask_id))
    tokenizer.agree_with(model(tokenizer.vocab_size + 58, tokenizer.mask_id))
    with pytest.raises(UserError, match="embedding_size"):
        tokenizer.agree_with(model(tokenizer.vocab_size - 1, tokenizer.mask_id))
    with pytest.raises(UserError, match="mask_token_id=3"):
        tokenizer.agree_with(model(tokenizer.vocab_size, 3))


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_unreadable_folders_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_a_damaged_config_is_named(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not JSON"):
        Tokenizer.from_folder(tmp_path)


def test_a_conversation_has_the_published_text(tokenizer):
    head = "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
    answer = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert tokenizer.render([USER]) == head + answer
    assert tokenizer.render([USER], add_generation_prompt=False) == head
    assert tokenizer.render([USER, ANSWER]) == f"{head}{answer}hi<|eot_id|>"
    with_system = tokenizer.render([SYSTEM, USER])
    assert with_system.startswith(
        "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>"
    )


PUBLISHED = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}"
    "{% endif %}{{ c }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


@pytest.mark.parametrize("template", [chat.TEMPLATE, PUBLISHED], ids=["ours", "published"])
@pytest.mark.parametrize("history", [[USER], [SYSTEM, USER], [USER, ANSWER, USER]])
def test_a_prompt_is_a_prefix_of_its_conversation(tokenizer, template, history):
    special = tokenizer.special

    def text(messages, prompt):
        return chat.render(template, messages, add_generation_prompt=prompt, special=special)

    whole = text([*history, ANSWER], False)
    assert whole.startswith(text(history, True))
    assert whole.endswith("hi<|eot_id|>")
    assert text(history, True) == tokenizer.render(history)


def test_the_ids_of_a_conversation_hold_the_special_tokens(tokenizer):
    ids = tokenizer.chat([USER, ANSWER])
    assert ids[0] == tokenizer.bos_id
    assert ids[-1] == tokenizer.eot_id
    assert tokenizer.decode(ids) == tokenizer.render([USER, ANSWER])


def test_a_base_vocabulary_gets_the_chat_tokens_behind_its_own():
    import tokenizers

    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    core.add_special_tokens(["<|endoftext|>", "<|mdm_mask|>"])
    base = Tokenizer(core, {"eos_token": "<|endoftext|>"}, source="base")
    with pytest.raises(UserError, match="with_chat_tokens"):
        base.chat([USER])
    fitted = base.with_chat_tokens()
    assert [fitted.core.token_to_id(token) for token in CHAT_TOKENS] == [4, 5, 6]
    assert base.vocab_size == 4
    assert fitted.chat([USER])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "expected a list"),
        ("hello", "expected a list"),
        ([{"role": "user"}], r"messages\[0\]: expected a message"),
        ([{"role": "usr", "content": "x"}], "did you mean 'user'"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content: expected text, got int"),
        ([USER, SYSTEM], r"messages\[1\].role='system'"),
    ],
)
def test_malformed_messages_are_named(tokenizer, messages, message):
    with pytest.raises(UserError, match=message):
        tokenizer.chat(messages)


def test_templates_run_in_a_sandbox(tokenizer):
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError, match="chat template"):
        chat.render(attack, [USER], add_generation_prompt=True, special={})
    refusal = "{{ raise_exception('no system message here') }}"
    with pytest.raises(UserError, match="no system message here"):
        chat.render(refusal, [USER], add_generation_prompt=True, special={})
