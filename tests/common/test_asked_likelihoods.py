"""Requests for likelihoods: how continuations become questions, and whole texts windows."""

import dataclasses

import pytest

from jaxllada.apps.evaluation.answers_kept import KeptAnswers
from jaxllada.apps.evaluation.asked import Manner, answer, cost
from jaxllada.apps.evaluation.asked_likelihoods import MOST_VIEWS, Likelihoods, Rollings, as_decided
from jaxllada.apps.score import Row, ScoreOptions, encode
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.scores import QuestionScores, Score
from tests.asked_words import Instance, Told, small_model, small_tokenizer

TOKENIZER = small_tokenizer()
MODEL = small_model(TOKENIZER)
ONE = LikelihoodConfig(mc_num=1, batch_size=1)


def works(instances, kind=Likelihoods, model=MODEL, **manner):
    return kind(instances, TOKENIZER, model, Manner(**{"likelihood": ONE} | manner))


def run(work):
    kept, engine = KeptAnswers(), Told(TOKENIZER, MODEL)
    answer([work], engine, kept)
    return kept, engine


def questions(engine):
    """The questions that were asked, by their numbers; prompts as lists."""
    found = [question for call in engine.calls for question in call[0]]
    found = [dataclasses.replace(one, prompt=list(one.prompt)) for one in found]
    return sorted(found, key=lambda question: question.number)


def test_long_questions_come_first_and_those_of_like_length_together():
    instances = [Instance((" on" * (1 + n % 90), " the"), n) for n in range(0, 7000, 47)]
    groups = works(instances, model=small_model(TOKENIZER, 100)).groups
    lengths = [[len(request.ask[0].prompt) for request in group] for group in groups]
    assert [len(group) for group in lengths] == [64, 64, 21]
    in_order = [length for group in lengths for length in group]
    assert in_order == sorted(in_order, reverse=True)


def test_options_of_a_document_become_one_question_and_keep_their_places():
    instances = [
        Instance(("the cat", " sat"), 0), Instance(("the cat", " on"), 0),
        Instance(("the dog", " sat"), 1), Instance(("the dog", " on the log"), 1),
    ]  # fmt: skip
    work = works(instances)
    kept, engine = run(work)
    first, second = questions(engine)
    encoded = TOKENIZER.encode
    assert (first.prompt, first.options) == (encoded("the cat"), (encoded(" sat"), encoded(" on")))
    assert second.options == (encoded(" sat"), encoded(" on the log"))
    assert (first.number, second.number) == (0, 1)
    values = [work.result(i, kept) for i in range(4)]
    assert [value for value, _ in values] == [-sum(encoded(i.args[1])) for i in instances]
    assert [is_greedy for _, is_greedy in values] == [True, True, True, False]


def test_questions_are_encoded_as_by_the_verb_score():
    row = Row("the cat sat on ", ["the mat", "the dog", "a log"], 0)
    options = ScoreOptions(model_name_or_path="x", questions_file="x", add_bos=True)
    expected = encode(row, TOKENIZER, options)
    work = works([Instance((row.prompt, text)) for text in row.options], add_bos=True)
    (found,) = questions(run(work)[1])
    assert (found.prompt, found.options) == (expected.prompt, expected.options)
    assert found.prompt[0] == TOKENIZER.bos_id


def test_blanks_behind_a_chat_template_stay_in_the_prompt():
    context = "the cat<|end_header_id|>\n\n"
    ((plain,), (chat,)) = (
        questions(run(works([Instance((context, "on"))], keeps_blanks=keeps))[1])
        for keeps in (False, True)
    )
    assert chat.prompt == TOKENIZER.encode(context)
    assert len(plain.options[0]) > len(chat.options[0])
    assert plain.prompt + plain.options[0] == chat.prompt + chat.options[0]


def test_contexts_of_one_document_share_its_masks():
    """As Winogrande has them: two prompts, one continuation."""
    work = works([Instance((text, " on"), 7) for text in ("the cat", "the dog")])
    assert [q.number for q in questions(run(work)[1])] == [7, 7]


def test_only_options_that_race_may_stop_early():
    racing = LikelihoodConfig(mc_num=64, batch_size=16, stop_level=0.9)
    instances = [
        Instance(("the cat", " sat"), 0), Instance(("the cat", " on the"), 0),  # a race
        Instance(("the dog", " sat"), 1),  # one option: its value is wanted
        Instance(("the log", " sat"), 2), Instance(("the mat", " sat"), 2),  # two contexts
    ]  # fmt: skip
    # Options compared with themselves behind another context, as acc_mutual_info does.
    instances += [Instance((context, o), 3) for context in ("the cat", "") for o in (" on", " log")]
    _, engine = run(works(instances, likelihood=racing))
    levels = {q.number: config.stop_level for found, config in engine.calls for q in found}
    assert levels == {0: 0.9, 1: 0.0, 2: 0.0, 3: 0.0}
    (race,) = (q for q in questions(engine) if q.number == 0)
    assert race.divisors == (3.0, 6.0)  # characters, as lm_eval's acc_norm divides


def test_an_option_that_left_a_race_does_not_stand_above_the_one_that_beat_it():
    """lm_eval ranks values as they are, and divided by characters."""
    values, divisors = (-3.0, -2.9, -8.0, -1.0), (2.0, 9.0, 8.0, 1.0)
    for best, best_divided in ((0, 0), (0, 2), (3, 1)):
        scores = tuple(Score(value, 0.1, 48, 1, 0.0) for value in values)
        found = as_decided(QuestionScores(scores, best, best_divided, True), divisors)
        others = [i for i in range(4) if i not in (best, best_divided)]
        assert all(found[i] < found[best] for i in others)
        assert all(
            found[i] / divisors[i] < found[best_divided] / divisors[best_divided] for i in others
        )
        assert (found[best], found[best_divided]) == (values[best], values[best_divided])
        assert all(found[i] <= values[i] for i in others)
        assert as_decided(QuestionScores(scores, best, best_divided), divisors) == list(values)


def test_many_masks_are_handed_over_in_small_groups():
    config = LikelihoodConfig(mc_num=MOST_VIEWS // 4, batch_size=16)
    instances = [Instance((f"the {i}", f" {o}"), i) for i in range(5) for o in ("on", "log")]
    assert [len(group) for group in works(instances, likelihood=config).groups] == [2, 2, 1]


def test_calls_do_not_depend_on_rows_per_call_and_answers_are_not_asked_again():
    instances = [Instance(("the cat", " sat"), 0)]
    keys = {
        works(instances, likelihood=LikelihoodConfig(mc_num=4, batch_size=b, rows_per_call=r)).keys[
            0
        ]
        for b, r in ((4, 0), (4, 16), (2, 0))
    }
    assert len(keys) == 2


def test_prompts_without_room_are_refused_or_cut():
    instances = [Instance((" on" * 63, " the cat"), 4, "long")]
    with pytest.raises(UserError, match=r"task long, question 4: prompt and option have 63 \+ 2"):
        works(instances)
    (question,) = questions(run(works(instances, too_long="cut"))[1])
    assert (len(question.prompt), len(question.options[0])) == (62, 2)
    padded = LikelihoodConfig(mc_num=1, batch_size=1, padd_eos=True)
    (question,) = questions(run(works(instances, too_long="cut", likelihood=padded))[1])
    assert len(question.prompt) == 61
    with pytest.raises(UserError, match="question 0: an option adds no token"):
        works([Instance(("the cat", ""))])


def test_windows_count_every_token_once_and_see_what_fits_before_them():
    text = "the cat sat on the mat and the dog sat on the log" * 4
    tokens = TOKENIZER.encode(text)
    model = small_model(TOKENIZER, 20)
    work = works([Instance((text,), 3)], Rollings, model, add_bos=True)
    kept, engine = run(work)
    found = questions(engine)
    assert [token for q in found for token in q.options[0]] == tokens
    assert len(found) == -(-len(tokens) // 19) > 2
    for q in found[:-1]:
        assert (len(q.prompt), len(q.options[0])) == (1, 19)
    last = found[-1]
    assert len(last.prompt) + len(last.options[0]) == 20
    assert last.prompt[0] == TOKENIZER.bos_id
    shown = len(last.options[0]) + len(last.prompt) - 1
    assert [*last.prompt[1:], *last.options[0]] == tokens[-shown:]
    assert len({q.number for q in found}) == len(found)  # masks of windows are independent
    assert work.result(0, kept) == -sum(tokens)


def test_a_short_text_is_one_window_behind_nothing():
    work = works([Instance(("the cat",))], Rollings)
    (question,) = questions(run(work)[1])
    assert (question.prompt, question.options) == ([], (TOKENIZER.encode("the cat"),))
    with pytest.raises(UserError, match="the text is empty"):
        works([Instance(("",))], Rollings)


def test_canvases_are_summed_over_questions():
    work = works([Instance(("the cat", f" {o}"), i) for i in range(2) for o in ("on", "log", "a")])
    kept, _ = run(work)
    found = cost([work], kept, 1, 5.0)
    assert (found.requests, found.kept, found.canvases, found.scoring_seconds) == (2, 1, 18, 6.0)
    assert (found.response_tokens, found.tokens_per_second) == (0, None)
