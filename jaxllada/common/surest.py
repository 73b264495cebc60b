"""Answers scored one token at a time: the surest one is read off, shown, and the rest asked again.

The confidence score of iLLaDA's evaluation (arXiv:2606.25331) and the check whether greedy decoding
would give the answer; both as the released code does them. All answers advance together.
"""

from collections.abc import Sequence

import numpy as np

from jaxllada.common.scores import OpenOption
from jaxllada.common.view_reader import Reader
from jaxllada.common.views import View


def reveal(options: Sequence[OpenOption], reader: Reader, is_guided: bool) -> None:
    """Adds up the surest true tokens, each shown to the next call; ties to the first."""
    hidden = [np.ones(option.length, bool) for option in options]
    totals = np.zeros(len(options))
    while members := [i for i, mask in enumerate(hidden) if mask.any()]:
        views = [View(options[i].text, hidden[i].copy()) for i in members]
        for i, reading in zip(members, reader(views, is_guided), strict=True):
            surest = np.argmin(np.where(hidden[i], reading.nll, np.inf))
            totals[i] -= reading.nll[surest]
            hidden[i][surest] = False
            options[i].nfe += 2 if is_guided else 1
    for option, total in zip(options, totals, strict=True):
        option.rounds, option.is_exact, option.n = [np.array([total])], True, 1


def decode(options: Sequence[OpenOption], reader: Reader, is_guided: bool) -> None:
    """Follows greedy decoding as long as it writes the answer; ties to the first position."""
    hidden = [np.ones(option.length, bool) for option in options]
    for option in options:
        option.is_greedy = True
    while members := [i for i, mask in enumerate(hidden) if options[i].is_greedy and mask.any()]:
        views = [View(options[i].text, hidden[i].copy()) for i in members]
        for i, reading in zip(members, reader(views, is_guided), strict=True):
            surest = np.argmin(np.where(hidden[i], reading.best, np.inf))
            options[i].is_greedy = bool(reading.is_best[surest])
            hidden[i][surest] = False
            options[i].nfe += 2 if is_guided else 1
