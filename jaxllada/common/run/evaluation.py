"""The validation bound as numbers on the host: joined over batches, with its error and baselines.

The bound is equation (3) of LLaDA (arXiv:2502.09992v3) in nats per token: an upper bound on the
negative log-likelihood. The noise is a function of the seed and the row, with mask rates spread
evenly over all rows and draws, so two evaluations differ by the weights alone.

Shape letters: B rows, T bins of the mask rate, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation; everything in nats per token or shares of masked tokens.

    `standard_error` is that of drawing other rows (and noise): the bound is a ratio of sums over
    rows, each row averaged over its draws; spreading the mask rates evenly makes it an upper
    estimate.
    """

    bound: float
    standard_error: float
    accuracy: float
    nll_by_rate: tuple[float | None, ...]
    accuracy_by_rate: tuple[float | None, ...]
    rows: int
    tokens: int
    draws: int
    bytes: int | None = None
    """Bytes of the text that was measured, where somebody has counted them."""
    is_exact: bool = False
    """Whether `bound` is the negative log-likelihood itself, that of an autoregressive model."""

    @property
    def bound_per_byte(self) -> float | None:
        """The bound in nats per byte of text, which does not depend on the tokenizer."""
        return self.bound * self.tokens / self.bytes if self.bytes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        } | {"bound_per_byte": self.bound_per_byte}


def summarize(parts: Sequence[Any], draws: int) -> Evaluation:
    """Joins the sums of all batches; row r holds draw r % draws of data row r // draws.

    A part has `nats` and `tokens` of each row ([B]) and `counts`: sums of losses, of hits and of
    masked tokens by mask rate ([T] each), as the backends' `RowSums`.
    """
    nats = np.concatenate([np.asarray(part.nats, np.float64) for part in parts])
    tokens = np.concatenate([np.asarray(part.tokens, np.float64) for part in parts])
    used = tokens > 0
    nats = nats[used].reshape(-1, draws).mean(axis=1)
    tokens = tokens[used].reshape(-1, draws).mean(axis=1)
    nll, correct, masked = (
        np.sum([np.asarray(array, np.float64) for array in arrays], axis=0)
        for arrays in zip(*(part.counts[:3] for part in parts), strict=True)
    )
    bound = nats.sum() / tokens.sum()
    rows = len(nats)
    spread = np.sum((nats - bound * tokens) ** 2) * rows / max(1, rows - 1)
    return Evaluation(
        bound=float(bound),
        standard_error=float(math.sqrt(spread) / tokens.sum()),
        accuracy=float(correct.sum() / max(1.0, masked.sum())),
        nll_by_rate=shares(nll, masked),
        accuracy_by_rate=shares(correct, masked),
        rows=rows,
        tokens=int(tokens.sum()),
        draws=draws,
    )


def shares(sums: np.ndarray, counts: np.ndarray) -> tuple[float | None, ...]:
    """sums / counts for each bin, None where nothing was counted."""
    return tuple(float(s / n) if n else None for s, n in zip(sums, counts, strict=True))


def unigram_bound(
    train_counts: Int[np.ndarray, " V"], validation_counts: Int[np.ndarray, " V"]
) -> float:
    """Cross-entropy in nats per token of validation text under the frequencies of training text.

    Add-one smoothing gives tokens never seen in training a finite cost.
    """
    total = validation_counts.sum()
    if total == 0:
        raise UserError("the validation text holds no tokens")
    smoothed = train_counts.astype(np.float64) + 1
    return float(-(validation_counts * np.log(smoothed / smoothed.sum())).sum() / total)


def text_bytes(validation_rows: Any, max_rows: int, byte_lengths: Sequence[int]) -> int:
    """Bytes of the counted tokens of the rows an evaluation uses; those of a token by its id.

    Of a dialogue the last answer counts, as in the evaluation. End tokens are no text: a model
    pays for them, but they add no bytes.
    """
    lengths, total = np.asarray(byte_lengths), 0
    for number in used_rows(len(validation_rows), max_rows):
        row = validation_rows[int(number)]
        row = row.turn(-1) if row.turns else row
        total += int(lengths[np.asarray(row.tokens)[np.asarray(row.maskable)]].sum())
    return total


def used_rows(rows: int, max_rows: int) -> np.ndarray:
    """Numbers of the rows an evaluation uses: all, or `max_rows` of them, evenly spaced."""
    used = min(max_rows, rows) if max_rows else rows
    return np.arange(used) * rows // used


def uniform_bound(vocab_size: int) -> float:
    """Cost in nats per token of guessing every token of the vocabulary alike."""
    return math.log(vocab_size)


def baselines(train_rows: Any, validation_rows: Any, model: ModelConfig, max_rows: int) -> dict:
    """Returns what a bound should beat, in nats per token on the validation rows that are used.

    `uniform_bound` is ln V; `unigram_bound` guesses by the frequencies of the training text and is
    left out where those cannot be counted (streams, prompt/answer rows).
    """
    found = {"uniform_bound": uniform_bound(model.vocab_size)}
    if validation_rows is not None and hasattr(train_rows, "token_counts"):
        counts = train_rows.token_counts(model.rows)[: model.vocab_size]
        chosen = np.zeros(model.vocab_size, np.int64)
        for number in used_rows(len(validation_rows), max_rows):
            tokens = validation_rows[int(number)].tokens
            chosen += np.bincount(tokens, minlength=model.vocab_size)[: model.vocab_size]
        found["unigram_bound"] = unigram_bound(counts, chosen)
    return found


def table(found: Evaluation, limits: dict[str, float]) -> str:
    """Lays an evaluation and its baselines out for a terminal."""
    names = {"uniform_bound": "uniform guess, ln V", "unigram_bound": "token frequencies"}
    per_byte = found.bound_per_byte
    title = "validation, exact" if found.is_exact else "validation bound"
    right = "next tokens right" if found.is_exact else "masked tokens right"
    noise = "" if found.is_exact else f", {found.draws} noise draws per row"
    lines = [
        f"{title:<22}{found.bound:8.4f} +- {found.standard_error:.4f} nats/token",
        *([] if per_byte is None else [f"{'':<22}{per_byte:8.4f} nats/byte of text"]),
        *(f"{names[key]:<22}{value:8.4f}" for key, value in limits.items()),
        f"{right:<22}{100 * found.accuracy:8.2f} %",
        f"{found.rows} rows, {found.tokens} tokens{noise}",
    ]
    if found.is_exact:
        return "\n".join(lines)
    lines += ["", f"{'mask rate':<12}{'nats/token':>12}{'right':>10}"]
    for b, (nll, accuracy) in enumerate(
        zip(found.nll_by_rate, found.accuracy_by_rate, strict=True)
    ):
        share = f"{b / 10:.1f}-{(b + 1) / 10:.1f}"
        if nll is None or accuracy is None:
            lines.append(f"{share:<12}{'-':>12}{'-':>10}")
        else:
            lines.append(f"{share:<12}{nll:12.4f}{100 * accuracy:8.2f} %")
    return "\n".join(lines)
