"""Classes of answer tokens, so that padding can be watched apart from what was written.

Answers are padded with end-of-sequence tokens that LLaDA trains on like any other token
(arXiv:2502.09992v3, section 2.3). One mean over all of them hides whether a model learns to answer
or to stop: the first of these tokens says where an answer ends, those behind it follow from it.

Shape letters: L positions of a padded row.
"""

import numpy as np
from jaxtyping import Int, Int8

NAMES = ("content", "first_eos", "padding_eos")
"""Class c of a token is the place of its name here."""


def token_classes(tokens: Int[np.ndarray, " L"], eos_id: int) -> Int8[np.ndarray, " L"]:
    """Returns the class of every position of a row that is padded with `eos_id`.

    The end tokens that close the row, whether they are its own or padding, begin with the first
    EOS; everything before them is content (an end-of-turn token of the chat template too).
    """
    others = np.flatnonzero(tokens != eos_id)
    first = int(others[-1]) + 1 if len(others) else 0
    classes = np.zeros(len(tokens), np.int8)
    classes[first:] = 2
    classes[first : first + 1] = 1
    return classes
