"""Requests for text: which settings win, which texts are asked together, and what is judged."""

import pytest

from jaxllada.apps.evaluation.answers_kept import KeptAnswers
from jaxllada.apps.evaluation.asked import Manner, answer, cost, keys_of, missing
from jaxllada.apps.evaluation.asked_texts import Texts, judged, settings_of, told_settings
from jaxllada.apps.evaluation.ranks import Part
from jaxllada.common.errors import UserError
from tests.asked_words import Instance, Told, small_model, small_tokenizer

TOKENIZER = small_tokenizer()
MODEL = small_model(TOKENIZER)
SHORT = {"gen_length": 16, "block_length": 4, "steps": 16}


def works(instances, **manner):
    return Texts(instances, TOKENIZER, MODEL, Manner(**{"sampling": SHORT} | manner))


def run(work, engine, kept=None, part=None):
    kept = KeptAnswers() if kept is None else kept
    answer([work], engine, kept, part)
    return kept


def as_released(tokens, until):
    """eval_llada.py: cut the text with special tokens, encode it again, decode it without them."""
    text = TOKENIZER.decode(tokens)
    for stop in until:
        if stop in text:
            text = text.split(stop)[0]
    return TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=True)


@pytest.mark.parametrize(
    "until",
    [(), ("Q",), ("dog", "cat"), ("cat", "the cat"), ("<|eot_id|>",), ("\n\n",), ("nowhere", "no")],
)
def test_what_is_judged_is_what_the_released_evaluation_judges(until):
    text = "the cat sat<|start_header_id|> on the mat\n\nthe dog Question: no<|eot_id|>"
    tokens = TOKENIZER.encode(text)
    assert judged(tokens, until, TOKENIZER)[0] == as_released(tokens[:-1], until)


def test_nothing_behind_the_first_end_token_is_judged_or_counted():
    answered = TOKENIZER.encode(" on the mat")
    for end in (TOKENIZER.eos_id, TOKENIZER.eot_id):
        tokens = [*answered, end, *TOKENIZER.encode(" and the dog"), TOKENIZER.eos_id]
        assert judged(tokens, (), TOKENIZER) == (" on the mat", len(answered))


def test_tokens_behind_a_stop_text_are_not_counted():
    tokens = TOKENIZER.encode("the cat\n\nQuestion: is it a cat?")
    assert judged(tokens, ("\n\n",), TOKENIZER) == ("the cat", len(TOKENIZER.encode("the cat")))


def test_what_the_user_sets_wins_over_the_task_and_the_task_over_defaults():
    task = {
        "until": ["\n"],
        "max_gen_toks": 32,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    config, until = settings_of(task, {}, MODEL, TOKENIZER)
    assert (config.gen_length, config.temperature, config.top_p, until) == (32, 0.5, 0.9, ("\n",))
    config, _ = settings_of(task, {"gen_length": 16, "temperature": 0.0}, MODEL, TOKENIZER)
    assert (config.gen_length, config.temperature, config.steps) == (16, 0.0, 16)
    config, _ = settings_of(task | {"do_sample": False}, {}, MODEL, TOKENIZER)
    assert (config.temperature, config.top_p) == (0.0, None)
    config, _ = settings_of({"max_gen_toks": 30}, {"block_length": 8}, MODEL, TOKENIZER)
    assert (config.gen_length, config.num_blocks) == (32, 4)
    config, until = settings_of({}, {}, MODEL, TOKENIZER)
    assert (config.gen_length, until) == (32, ())  # half of what the model has room for
    assert settings_of({"until": "\n"}, {}, MODEL, TOKENIZER)[1] == ("\n",)


def test_settings_of_a_task_that_are_not_used_are_told():
    task = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 32, "x": 1}
    config, _ = settings_of(task, SHORT, MODEL, TOKENIZER)
    told = told_settings(task, SHORT, config)
    assert told == (
        "gen_length=16, steps=16, block_length=4, temperature=0.0; not used of the task:"
        " max_gen_toks=32, x=1"
    )
    config, _ = settings_of({"max_gen_toks": 16}, {}, MODEL, TOKENIZER)
    assert "not used" not in told_settings({"max_gen_toks": 16}, {}, config)


def test_prompts_of_like_length_are_asked_together_the_longest_first():
    lengths = (3, 9, 1, 7, 5, 8)
    instances = [Instance((" on" * n, {"until": ["z"]}), i) for i, n in enumerate(lengths)]
    work, engine = works(instances, batch_size=2), Told(TOKENIZER, MODEL, TOKENIZER.encode)
    kept = run(work, engine)
    asked = [[TOKENIZER.decode(prompt).count("on") for prompt in call[0]] for call in engine.calls]
    assert asked == [[9, 8], [7, 5], [3, 1]]
    # Answers come back in the order of the requests.
    assert [work.result(i, kept).count("on") for i in range(6)] == list(lengths)


def test_requests_of_other_settings_or_stop_texts_are_not_asked_together():
    instances = [Instance(("the", {"until": [stop]}), i) for i, stop in enumerate("aba")]
    instances.append(Instance(("the cat", {"until": ["a"]}), 3))
    engine = Told(TOKENIZER, MODEL)
    run(works(instances), engine)
    # The first and the third are one request: nothing is drawn at random.
    assert sorted(len(call[0]) for call in engine.calls) == [1, 2]


def test_noise_is_drawn_by_the_question_and_its_repetition_whatever_the_batch():
    task = {"until": []}
    twice = Instance(("the dog", task), 5)
    instances = [Instance(("the cat sat", task), 4), twice, twice, Instance(("on", task), 7)]
    rows = {}
    for size in (1, 2, 4):
        engine = Told(TOKENIZER, MODEL)
        run(works(instances, sampling=SHORT | {"temperature": 0.7}, batch_size=size), engine)
        rows[size] = {
            (TOKENIZER.decode(prompt), row)
            for prompts, _, _, numbers, _ in engine.calls
            for prompt, row in zip(prompts, numbers, strict=True)
        }
    assert rows[1] == rows[2] == rows[4]
    assert rows[1] == {("the cat sat", 4), ("the dog", 5), ("the dog", 5 + (1 << 20)), ("on", 7)}


def test_a_greedy_answer_is_asked_for_once_and_one_with_noise_for_every_repetition():
    twice = Instance(("the dog", {"until": []}), 5)
    greedy, noisy = works([twice] * 3), works([twice] * 3, sampling=SHORT | {"temperature": 1.0})
    assert [len(set(work.keys)) for work in (greedy, noisy)] == [1, 3]


def test_the_seed_tells_answers_apart_where_something_is_drawn():
    instance, noisy = Instance(("the dog", {"until": []}), 5), SHORT | {"temperature": 1.0}
    keys = [works([instance], sampling=noisy, seed=seed).keys for seed in (0, 1)]
    assert keys[0] != keys[1]
    assert works([instance], seed=0).keys == works([instance], seed=1).keys
    engine = Told(TOKENIZER, MODEL)
    run(works([instance], sampling=noisy, seed=1), engine)
    assert engine.calls[0][2] == 1


def test_blocks_stop_at_stop_texts_and_one_block_is_not_asked():
    instances = [Instance(("the cat", {"until": ["Question:", "dog"]}))]
    engine = Told(TOKENIZER, MODEL)
    run(works(instances), engine)
    run(works(instances, sampling=SHORT | {"block_length": 16}), engine)
    stops, none = (call[4] for call in engine.calls)
    assert stops(TOKENIZER.encode("the dog"))
    assert not stops(TOKENIZER.encode("the cat"))
    assert none is None


def test_prompts_without_room_are_refused_cut_or_answered_in_fewer_blocks():
    text = " on" * 60
    assert len(TOKENIZER.encode(text)) == 60
    instances = [Instance((text, {"until": []}), 3, "maths")]
    with pytest.raises(UserError, match="task maths, question 3: the prompt has 60 tokens"):
        works(instances)
    cut, engine = works(instances, too_long="cut"), Told(TOKENIZER, MODEL)
    run(cut, engine)
    assert engine.calls[0][0] == [TOKENIZER.encode(text)[12:]]
    engine = Told(TOKENIZER, MODEL)
    run(works(instances, too_long="shorten"), engine)
    ((prompts, config, *_),) = engine.calls
    assert len(prompts[0]) == 60
    assert (config.gen_length, config.steps, config.block_length) == (4, 4, 4)


def test_gaps_in_prompts_are_refused():
    with pytest.raises(UserError, match="infill=true"):
        works([Instance(("the", {}))], sampling={"infill": True, "gen_length": 4})


def test_parts_answer_everything_once_and_a_later_run_finds_it(tmp_path):
    instances = [Instance((" on" * (1 + i), {"until": []}), i) for i in range(9)]
    asked, left = [], {0, 1, 2}
    for index in (2, 0, 1):
        work, engine = works(instances, batch_size=2), Told(TOKENIZER, MODEL, TOKENIZER.encode)
        kept = KeptAnswers(tmp_path, f"part-{index}-of-3")
        run(work, engine, kept, Part(index, 3))
        asked += [tuple(prompt) for call in engine.calls for prompt in call[0]]
        left.remove(index)
        assert missing([work], kept, 3).keys() == left
        kept.close()
    assert len(asked) == len(set(asked)) == 9
    work, engine = works(instances, batch_size=2), Told(TOKENIZER, MODEL, TOKENIZER.encode)
    kept = run(work, engine, KeptAnswers(tmp_path))
    assert engine.calls == []
    assert [work.result(i, kept) for i in range(9)] == [" on" * (1 + i) for i in range(9)]


def test_an_equal_request_of_another_task_is_asked_once():
    first = works([Instance(("the cat", {"until": []}), 0, "one")])
    second = works(
        [Instance((text, {"until": []}), i, "two") for i, text in enumerate(("on", "the cat"))]
    )
    kept, engine = KeptAnswers(), Told(TOKENIZER, MODEL, TOKENIZER.encode)
    answer([first, second], engine, kept)
    asked = [TOKENIZER.decode(prompt) for call in engine.calls for prompt in call[0]]
    assert asked == ["the cat", "on"]
    assert (first.result(0, kept), second.result(1, kept)) == ("the cat", "the cat")
    assert len(keys_of([first, second])) == 2


def test_calls_of_a_batch_count_once_and_tokens_are_those_of_answers():
    instances = [Instance((" on" * n, {"until": []}), n) for n in (1, 2, 3)]
    work = works(instances, batch_size=2)
    kept = run(work, Told(TOKENIZER, MODEL, TOKENIZER.encode))
    found = cost([work], kept, 0, 1.0)
    assert (found.requests, found.model_calls, found.response_tokens) == (3, 12, 6)
    assert found.sampling_seconds == 4.0
    assert found.tokens_per_second == 1.5
