"""The harness against lm_eval's own for transformers, on one autoregressive model.

Both read the same weights and tokenizer: encoding, windows, decoding and stop texts have to agree.
"""

import pytest

from jaxllada.apps.evaluation.harness import harness
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.tokenizer import Tokenizer
from tests.asked_words import TEXTS
from tests.qwen2 import SHAPE, reference, torch, transformers

PAIRS = [
    ("the cat sat on ", "the mat"), ("the dog", " sat"), ("and", "the dog sat on"), ("", " the cat")
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """lm_eval's model and ours."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from npu_backend import convert
    from npu_backend.causal_engine import engine_of

    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = Tokenizer.train(TEXTS * 20, SHAPE["vocab_size"], folder)
    model = reference(folder, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
                      max_position_embeddings=32)  # fmt: skip
    with torch.no_grad():  # never the likeliest: answers have no special tokens
        model.lm_head.weight[tokenizer.eos_id - 1 :] = 0
    model.save_pretrained(folder)
    theirs = huggingface.HFLM(
        pretrained=transformers.Qwen2ForCausalLM.from_pretrained(folder),
        tokenizer=transformers.PreTrainedTokenizerFast.from_pretrained(folder),
        device="cpu",
        batch_size=2,
        max_length=31,  # its windows show one token more than they count
    )
    one = LikelihoodConfig(mc_num=1, batch_size=1)
    ours = harness(engine_of(convert.load(folder), None), tokenizer, likelihood=one)
    return theirs, ours


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, 0, ("task", i, 1)) for i, args in enumerate(arguments)]


def test_continuations_have_the_same_log_likelihood(models):
    theirs, ours = models
    asked = requests("loglikelihood", PAIRS)
    expected = [value for value, _ in theirs.loglikelihood(asked)]
    found = [value for value, _ in ours.loglikelihood(asked)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_texts_have_the_same_log_likelihood_while_they_fit(models):
    theirs, ours = models
    asked = requests("loglikelihood_rolling", [("the cat sat on the mat",), ("no dog",)])
    assert ours.loglikelihood_rolling(asked) == pytest.approx(
        theirs.loglikelihood_rolling(asked), rel=1e-5
    )


def test_answers_end_before_the_same_stop_texts(models):
    theirs, ours = models
    contexts = ["the cat", "the dog sat on", "on", "mat"]
    plain = {"do_sample": False, "max_gen_toks": 12}
    asked = requests("generate_until", [(text, plain | {"until": []}) for text in contexts])
    answers = theirs.generate_until(asked)
    assert ours.generate_until(asked) == answers
    assert len(set(answers)) == len(answers)
    for place in (3, 6):  # stop where each answer is known to have a text
        stops = [[answer[place : place + 2], answer[place + 1 :][:1]] for answer in answers]
        pairs = [
            (text, plain | {"until": stop}) for text, stop in zip(contexts, stops, strict=True)
        ]
        asked = requests("generate_until", pairs)
        cut = theirs.generate_until(asked)
        assert ours.generate_until(asked) == cut
        assert all(len(one) < len(whole) for one, whole in zip(cut, answers, strict=True))
