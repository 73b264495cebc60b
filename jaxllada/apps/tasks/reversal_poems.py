"""Scores the reversal of poems: an answer is right if the wanted line occurs in it.

So did the evaluation of the LLaDA paper (arXiv:2502.09992v3, section 3.3): other words around the
line do not count against it.
"""

from collections.abc import Mapping, Sequence


def follows(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """1.0 if the answer holds the second line of the pair, asked with the first."""
    return {"acc": float(doc["second"] in results[0])}


def precedes(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """1.0 if the answer holds the first line of the pair, asked with the second."""
    return {"acc": float(doc["first"] in results[0])}
