"""Scores the options of questions with anything that reads masked copies (`common/views.py`).

Eq. 6 of LLaDA (arXiv:2502.09992v3) by stratified sampling or written out (`drawing.py`), or the
confidence score of iLLaDA's evaluation (`surest.py`).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxllada.common.config.likelihood import LONGEST_EXACT, LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.drawing import (
    Table,
    draw,
    measure_reuse,
    measured_round,
    pays_to_reuse,
    write_out,
)
from jaxllada.common.errors import UserError
from jaxllada.common.likelihood import Round, checked_tokens
from jaxllada.common.scores import (
    FIRST_LOOK,
    OpenOption,
    Question,
    QuestionScores,
    Race,
    Score,
    standard_error,
)
from jaxllada.common.surest import decode, reveal
from jaxllada.common.view_reader import Reader
from jaxllada.common.views import Text

MOST_VIEWS = 8192
"""Masked copies that are drawn up at one time, unless one question needs more."""
MOST_OPTIONS = 256


def score_questions(
    questions: Sequence[Question],
    config: LikelihoodConfig,
    model: ModelConfig,
    readers: Mapping[bool, Reader],
    *,
    first: int = 0,
    seed: int | None = None,
) -> list[QuestionScores]:
    """Scores every option; `readers[True]` reuses keys and values of prompts.

    Question i draws from (seed, first + i), one with a number from (seed, number). Raises
    `UserError` for what the model cannot be asked.
    """
    options = [_options_of(i, q, config, model, first) for i, q in enumerate(questions)]
    seed = config.seed if seed is None else seed
    results = []
    for group in _groups(options, config):
        begun = time.perf_counter()
        members = [questions[i] for i in group]
        mine = [options[i] for i in group]
        races = _score_group(members, mine, config, readers, seed)
        seconds = time.perf_counter() - begun
        share = seconds / max(1, sum(o.nfe for row in mine for o in row))
        for row, pair in zip(mine, races, strict=True):
            is_decided = all(len(race.open) == 1 for race in pair) if config.stop_level else None
            best = [race.leader(lambda i, row=row: np.array(row[i].value)) for race in pair]
            scores = tuple(_finished(option, share, config) for option in row)
            results.append(QuestionScores(scores, best[0], best[-1], is_decided))
    return results


def mean_over_rounds(
    reader: Reader,
    prompt: np.ndarray,
    answer: np.ndarray,
    rounds: Iterable[Round],
    is_guided: bool,
) -> float:
    """Averages Eq. 6 over given masks."""
    empty = np.zeros(0, np.int32)
    option = OpenOption(Text(prompt.astype(np.int32), answer.astype(np.int32), empty), 0, 0)
    table = Table(reader, is_guided)
    return float(np.mean(np.concatenate(table.values([(option, r) for r in rounds]))))


def check_exact(config: LikelihoodConfig) -> None:
    """Raises `UserError` for options that an autoregressive model would ignore."""
    for name in ("method", "stop_level", "greedy_check", "padd_eos", "reuse", "attention"):
        value = getattr(config, name)
        if value != getattr(LikelihoodConfig, name):
            raise UserError(f"{name}={value} is for diffusion models; leave it out")


def score_one_by_one(
    questions: Sequence[Question], value_of: Callable[[Sequence[int], Sequence[int]], float]
) -> list[QuestionScores]:
    """Scores with a function that is exact: `value_of(prompt, answer)` in nats."""
    results = []
    for question in questions:
        scores = []
        for option in question.options:
            begun = time.perf_counter()
            value = value_of(question.prompt, option)
            scores.append(Score(value, 0.0, 1, 1, time.perf_counter() - begun))
        race = [
            Race(len(scores), divisors or (1.0,) * len(scores), 0, 1)
            for divisors in (None, question.divisors)
        ]
        best = [r.leader(lambda i, scores=scores: np.array(scores[i].value)) for r in race]
        results.append(QuestionScores(tuple(scores), best[0], best[1]))
    return results


def _options_of(
    index: int, question: Question, config: LikelihoodConfig, model: ModelConfig, first: int
) -> list[OpenOption]:
    count = len(question.options)
    if not 0 < count <= MOST_OPTIONS:
        raise UserError(f"question {index} has {count} options; 1 to {MOST_OPTIONS} can be scored")
    if question.divisors is not None and (
        len(question.divisors) != count or min(question.divisors) <= 0
    ):
        raise UserError(
            f"question {index}: divisors={question.divisors} must be {count} numbers above 0"
        )
    tail = np.array([model.eos_token_id] if config.padd_eos else [], np.int32)
    options = []
    for number, tokens in enumerate(question.options):
        prompt, answer = checked_tokens(
            question.prompt, tokens, model, extra=len(tail), where=f"question {index}: "
        )
        if config.method == "exact" and len(answer) > LONGEST_EXACT:
            raise UserError(
                f"question {index}: method=exact with an answer of {len(answer)} tokens would need"
                f" 2**{len(answer)} - 1 masks; {LONGEST_EXACT} tokens are the most"
            )
        drawing = (first + index if question.number is None else question.number) * MOST_OPTIONS
        drawing += 0 if config.common_random_numbers else number
        options.append(OpenOption(Text(prompt, answer, tail), drawing, number))
    return options


def _groups(options: Sequence[list[OpenOption]], config: LikelihoodConfig) -> Iterator[list[int]]:
    """Questions that are scored together: neighbours, as many as memory should hold views of."""
    group, views = [], 0
    for index, row in enumerate(options):
        needed = sum(_views_of(option, config) for option in row)
        if group and views + needed > MOST_VIEWS:
            yield group
            group, views = [], 0
        group.append(index)
        views += needed
    if group:
        yield group


def _views_of(option: OpenOption, config: LikelihoodConfig) -> int:
    if config.method == "exact":
        return 2**option.length - 1
    if config.method == "confidence":
        return 1
    return config.batch_size * FIRST_LOOK if config.stop_level else config.mc_num


def _score_group(
    questions: Sequence[Question],
    options: Sequence[list[OpenOption]],
    config: LikelihoodConfig,
    readers: Mapping[bool, Reader],
    seed: int,
) -> list[list[Race]]:
    is_guided = config.cfg_scale > 0
    looks = config.num_rounds - FIRST_LOOK + 1
    races = []
    for question in questions:
        count = len(question.options)
        scales = [(1.0,) * count] + ([question.divisors] if question.divisors else [])
        races.append([Race(count, scale, config.stop_level, looks) for scale in scales])
    everyone = [option for row in options for option in row]
    plain, reusing = (Table(readers[reuse], is_guided) for reuse in (False, True))
    reuses = [config.reuse != "none" and pays_to_reuse(row, config) for row in options]
    for table in (plain, reusing):
        chosen = [i for i, reuse in enumerate(reuses) if reuse == (table is reusing)]
        mine = [options[i] for i in chosen]
        both_ways = []
        if table is reusing:
            both_ways = measured_round([o for row in mine for o in row], config, seed)
            table.expect(both_ways)
        if config.method == "exact":
            write_out([o for row in mine for o in row], table)
        elif config.method == "monte_carlo":
            draw(mine, [races[i] for i in chosen], table, config, seed)
        measure_reuse(both_ways, reusing, plain, config)
    if config.method == "confidence":
        reveal(everyone, readers[False], is_guided)
    if config.greedy_check:
        decode(everyone, readers[False], is_guided)
    return races


def _finished(option: OpenOption, share: float, config: LikelihoodConfig) -> Score:
    error, spread = option.error or (None, None)
    stderr = standard_error(option.rounds, option.is_exact or option.length == 1)
    if config.reuse == "corrected" and spread is not None:
        stderr = math.hypot(stderr, spread)
    return Score(
        option.value, stderr, option.n, option.nfe, option.nfe * share, option.is_greedy,
        error, spread,
    )  # fmt: skip
