"""A reader of masked copies in NumPy: logits from tables, as the table models of the backends."""

import numpy as np

from jaxllada.common.scores import Question
from jaxllada.common.scoring import score_questions
from jaxllada.common.view_reader import Reader
from jaxllada.common.views import Shapes
from tests.plain_loop import TABLE_CONFIG, tables


class Tables:
    """Logits by position, plus a term per visible token; `scale` makes tokens depend on more."""

    def __init__(self, seed=0, scale=0.5):
        self.table, effect = tables(seed)
        self.effect = effect * scale

    def nats(self, tokens):
        """-log p of every token at every position of one row without padding [L, V]."""
        logits = self.table[: len(tokens)] + self.effect[tokens].sum(axis=0)
        logits = logits.astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        return np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top - logits

    def read(self, batch, cfg_scale=0.0):
        size = batch.targets.shape[1]
        rows = np.zeros((len(batch.canvas), size, len(self.effect)))
        for row, (canvas, first, last) in enumerate(
            zip(batch.canvas, batch.first, batch.last, strict=True)
        ):
            found = self.nats(canvas[first:last])[batch.start - first :]
            rows[row, : len(found)] = found[:size]
        given, without = rows[batch.given], rows[batch.without]
        scores = -(without + (cfg_scale + 1) * (given - without))
        nats = np.log(np.exp(scores).sum(axis=-1, keepdims=True)) - scores
        nll = np.take_along_axis(nats, batch.targets[..., None], axis=-1)[..., 0]
        best = nats.min(axis=-1)
        return [np.where(batch.asked, x, 0) for x in (nll, best)] + [batch.asked & (nll == best)]


def make_readers(model, config, reusing=None, shapes=Shapes()):  # noqa: B008
    """Both readers of `score_questions`; `reusing` is what reuse of prompts would read."""
    return {
        key: Reader(lambda b, m=m: m.read(b, config.cfg_scale), TABLE_CONFIG, shapes, config.rows)
        for key, m in ((False, model), (True, reusing or model))
    }


def score(model, questions, config, *, reusing=None, shapes=Shapes(), **options):  # noqa: B008
    readers = make_readers(model, config, reusing, shapes)
    return score_questions(questions, config, TABLE_CONFIG, readers, **options)


def make_question(seed, lengths, prompt=6):
    rng = np.random.default_rng(seed)
    options = tuple(rng.integers(0, 29, length).tolist() for length in lengths)
    return Question(rng.integers(0, 29, prompt).tolist(), options)
