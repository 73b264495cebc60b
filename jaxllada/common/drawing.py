"""Eq. 6 of LLaDA (arXiv:2502.09992v3) for many answers: drawn round by round, or written out.

One mask per mask count, the counts spread evenly, is the allocation of least variance for a given
number of model calls (arXiv:2505.19223); common random numbers then remove most of what is left
from differences between options. Sets that are drawn again are not read again.
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.likelihood import Round, every_round, mask_round
from jaxllada.common.scores import FIRST_LOOK, OpenOption, Race, standard_error
from jaxllada.common.view_reader import Reader
from jaxllada.common.views import View

LEAST_GAIN = 1.5
"""How many times less work reuse of prompts has to be; its values are approximations."""

Asked = Sequence[tuple[OpenOption, Round]]


class Table:
    """Nats of hidden sets, each of them read once."""

    def __init__(self, reader: Reader, is_guided: bool):
        self._reader, self._is_guided = reader, is_guided
        self._known: dict[tuple[int, bytes], float] = {}
        self._expected: Asked = ()

    def expect(self, asked: Asked) -> None:
        """Names what will be asked for later, to be read along with what is asked for next."""
        self._expected = asked

    def values(self, asked: Asked) -> list[np.ndarray]:
        """Values of Eq. 6: for every round, those of its masks (float64)."""
        views: dict[tuple[int, bytes], View] = {}
        keys = []
        for option, (is_masked, _) in (*asked, *self._expected):
            row = [(id(option), mask.tobytes()) for mask in is_masked]
            keys.append(row)
            for key, mask in zip(row, is_masked, strict=True):
                if key not in self._known and key not in views:
                    views[key] = View(option.text, mask)
                    option.nfe += 2 if self._is_guided else 1
        self._expected = ()
        readings = self._reader(list(views.values()), self._is_guided)
        for key, reading in zip(views, readings, strict=True):
            self._known[key] = float(np.sum(reading.nll, dtype=np.float64))
        return [
            -np.array([self._known[key] for key in row]) * option.length / counts
            for row, (option, (_, counts)) in zip(keys, asked, strict=False)
        ]


def draw(
    options: Sequence[list[OpenOption]],
    races: Sequence[list[Race]],
    table: Table,
    config: LikelihoodConfig,
    seed: int,
) -> None:
    """Draws rounds for all options that may still be best; without `stop_level` all at once."""
    if config.stop_level:
        # No dearer than drawing, and too few different masks for a test to trust their spread.
        short = [o for row in options for o in row if 2**o.length - 1 <= config.mc_num]
        write_out(short, table)
        for row, pair in zip(options, races, strict=True):
            if all(option.is_exact for option in row):
                _look(row, pair)
    number = 0
    while number < config.num_rounds:
        wave = range(number, config.num_rounds)
        if config.stop_level:
            wave = range(number, max(number + 1, FIRST_LOOK))
        open_options = [
            row[i]
            for row, pair in zip(options, races, strict=True)
            for i in _contenders(pair, config)
            if not row[i].is_exact
        ]
        asked = [
            (option, mask_round(option.length, config, r, seed, option.drawing))
            for option in open_options
            for r in wave
        ]
        for (option, drawn), values in zip(asked, table.values(asked), strict=True):
            option.rounds.append(values)
            option.n += len(drawn.counts)
        number = wave.stop
        if config.stop_level:
            for row, pair in zip(options, races, strict=True):
                _look(row, pair)
        if not open_options:
            break


def _contenders(pair: Sequence[Race], config: LikelihoodConfig) -> list[int]:
    """Options to draw for; a ranking that is decided asks for none."""
    if not config.stop_level or len(pair[0].divisors) == 1:
        return pair[0].open
    return sorted({i for race in pair if len(race.open) > 1 for i in race.open})


def _look(row: Sequence[OpenOption], pair: Sequence[Race]) -> None:
    for race in pair:
        if len(race.open) > 1:
            race.look(lambda i: row[i].means())


def write_out(options: Sequence[OpenOption], table: Table) -> None:
    """The expectation of Eq. 6: the mean over mask counts of the mean over sets of that size."""
    asked = [(option, drawn) for option in options for drawn in every_round(option.length)]
    found = iter(table.values(asked))
    for option in options:
        means = [np.mean(next(found)) for _ in range(option.length)]
        option.rounds, option.is_exact = [np.array([np.mean(means)])], True
        option.n = 2**option.length - 1


def pays_to_reuse(options: Sequence[OpenOption], config: LikelihoodConfig) -> bool:
    """Whether a question is clearly less work beside keys and values of its prompt.

    Counts the tokens sent through the model. Reuse computes a prompt once for all answers of one
    length, but measures its error by a round of whole canvases: short answers, which have few
    different masks, and short prompts are better read whole.
    """
    rounds = FIRST_LOOK if config.stop_level else config.num_rounds
    whole = reused = 0.0
    for option in options:
        every = _different(option.length, rounds * config.batch_size)
        if config.method == "exact":
            every = 2**option.length - 1
        measured = _different(option.length, config.batch_size)
        length = option.text.length
        whole += every * length
        reused += (every + measured) * (length - len(option.text.prompt)) + measured * length
    grounds = {(option.length, option.text.length) for option in options}
    return whole > LEAST_GAIN * (reused + sum(length for _, length in grounds))


def _different(length: int, masks: int) -> float:
    """How many different masks of an answer are expected among so many."""
    sets = [math.comb(length, count) for count in range(1, length + 1)]
    return sum(n * -math.expm1(masks / length * math.log1p(-1 / n)) if n > 1 else 1 for n in sets)


def measured_round(
    options: Sequence[OpenOption], config: LikelihoodConfig, seed: int
) -> list[tuple[OpenOption, Round]]:
    """The masks that the error of reuse is measured with; no estimate is drawn from them."""
    return [
        (option, mask_round(option.length, config, config.num_rounds, seed, option.drawing))
        for option in options
    ]


def measure_reuse(asked: Asked, reusing: Table, plain: Table, config: LikelihoodConfig) -> None:
    """Reads a round both ways: its difference is the error, and may be taken off."""
    for (option, _), fast, slow in zip(
        asked, reusing.values(asked), plain.values(asked), strict=True
    ):
        option.error = float(np.mean(fast - slow)), standard_error([fast - slow])
        if config.reuse == "corrected":
            option.rounds = [values - option.error[0] for values in option.rounds]
