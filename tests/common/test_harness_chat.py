"""Conversations of a harness as text: where the model goes on, and system messages."""

import pytest

from jaxllada.apps.evaluation.harness import harness, templated
from jaxllada.common import chat
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer
from tests.asked_words import TEXTS, Instance, Told, small_model, small_tokenizer

TOKENIZER = small_tokenizer()
USER, SYSTEM = {"role": "user", "content": "is it?"}, {"role": "system", "content": "be brief"}
BEGUN = {"role": "assistant", "content": "the answer is "}


def test_the_model_goes_on_behind_its_header_or_inside_a_message_begun_for_it():
    whole = templated(TOKENIZER, [USER])
    assert whole == TOKENIZER.conversation([USER])
    assert whole.endswith(chat.ANSWER_HEADER)
    begun = templated(TOKENIZER, [USER, BEGUN], add_generation_prompt=False)
    assert begun == whole + "the answer is"
    repeated = [USER, {"role": "assistant", "content": "is it?"}]
    assert templated(TOKENIZER, repeated, add_generation_prompt=False) == whole + "is it?"


def test_system_messages_open_the_first_turn_where_a_template_refuses_them():
    refusing = Tokenizer(
        TOKENIZER.core,
        TOKENIZER.special,
        template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}" + chat.TEMPLATE,
    )
    joined = {"role": "user", "content": "be brief\n\nis it?"}
    assert templated(refusing, [SYSTEM, USER]) == TOKENIZER.conversation([joined])
    assert templated(TOKENIZER, [SYSTEM, USER]) == TOKENIZER.conversation([SYSTEM, USER])
    with pytest.raises(UserError, match="no system"):
        templated(refusing, [SYSTEM, BEGUN])


def test_a_tokenizer_without_the_tokens_of_the_template_is_named():
    bare = Tokenizer.train(TEXTS, 300)
    core = type(bare.core).from_str(bare.core.to_str().replace("<|eot_id|>", "<|other_id|>"))
    tokenizer = Tokenizer(core, bare.special, source="model folder")
    with pytest.raises(UserError, match=r"model folder: <\|eot_id\|> are not in the vocabulary"):
        templated(tokenizer, [USER])


def test_likelihoods_behind_a_template_keep_the_blanks_that_end_it():
    pytest.importorskip("lm_eval")
    model = small_model(TOKENIZER)
    engine = Told(TOKENIZER, model)
    ours = harness(engine, TOKENIZER, likelihood=LikelihoodConfig(mc_num=1, batch_size=1))
    context = ours.apply_chat_template([USER])
    ours.loglikelihood([Instance((context, "no"))])
    (question,) = engine.calls[0][0]
    assert list(question.prompt) == TOKENIZER.encode(context)
    assert question.options == (TOKENIZER.encode("no"),)
