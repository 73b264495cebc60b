"""Scores questions with options, each by its likelihood: the verb `score` of both packages.

The file has one JSON object a line: `{"prompt": "2 + 2 =", "options": [" 3", " 4"], "answer": 1}`.
Blanks that end a prompt are moved to the options, and an option is what its tokens add to those of
the prompt, as evaluation harnesses have it. Results go to stdout, everything else to stderr.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxllada.apps.answering import ModelKeys, OpenEngine, open_model
from jaxllada.apps.option_tokens import encode_options
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.errors import UserError
from jaxllada.common.scores import Question, QuestionScores

if TYPE_CHECKING:
    from jaxllada.common.tokenizer import Tokenizer

AT_ONCE = 64
"""Questions handed to the engine together, so that rows of equal length fill its calls."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(ModelKeys, LikelihoodConfig):
    """Keys of score: the questions, the model, and how likelihoods are estimated."""

    questions_file: str = ""
    """JSON lines with prompt, options and (if accuracy is wanted) answer, an index from 0."""
    chat: bool = False
    """Put every prompt into the model's chat template."""
    add_bos: bool = False
    """Begin every prompt with the beginning-of-sequence token."""
    limit: int = 0
    """Score the first questions only; 0: all."""
    output: str = ""
    """File (.jsonl) for the scores of every question."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.questions_file:
            raise UserError("questions_file is not given: name a file of JSON lines")
        if self.limit < 0:
            raise UserError(f"limit={self.limit} must be 0 or larger")
        if self.output and not Path(self.output).absolute().parent.is_dir():
            raise UserError(f"output={self.output}: its folder does not exist")

    def likelihood(self) -> LikelihoodConfig:
        """The options of the estimate alone."""
        keys = dataclasses.fields(LikelihoodConfig)
        return LikelihoodConfig(**{key.name: getattr(self, key.name) for key in keys})


class Row(NamedTuple):
    """One line of the file."""

    prompt: str
    options: list[str]
    answer: int | None


def run(config: ScoreOptions, open_engine: OpenEngine) -> int:
    """Scores every question and prints accuracy with its standard error."""
    rows = read_questions(config.questions_file)[: config.limit or None]
    engine, tokenizer = open_model(config, open_engine)
    questions = [encode(row, tokenizer, config) for row in rows]
    begun, found = time.perf_counter(), []
    for first in range(0, len(questions), AT_ONCE):
        part = questions[first : first + AT_ONCE]
        found += engine.score(part, config.likelihood(), first=first)
        print(f"{len(found)} of {len(questions)} questions", file=sys.stderr)
    seconds = time.perf_counter() - begun
    if config.output:
        _write(config.output, rows, found)
    print("\n".join(summary(rows, found, config, seconds)))
    return 0


def read_questions(name: str) -> list[Row]:
    """Reads the file; raises `UserError` that names the line that is not as it should be."""
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"questions_file={name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"questions_file={name} is not UTF-8 text") from None
    rows = [_row(line, f"{name}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"questions_file={name} is empty")
    if len({row.answer is None for row in rows}) > 1:
        raise UserError(f"questions_file={name}: some questions have an answer and some have none")
    return rows


def _row(line: str, where: str) -> Row:
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg}") from None
    if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
        raise UserError(f"{where}: expected an object with prompt, a text, and options")
    options: Any = given.get("options")
    answer: Any = given.get("answer")
    is_list = isinstance(options, list) and bool(options)
    if not is_list or not all(isinstance(text, str) and text for text in options):
        raise UserError(f"{where}: options={options!r} must be a list of texts, none of them empty")
    if isinstance(answer, str) and answer in options:
        answer = options.index(answer)
    if answer is not None and (type(answer) is not int or not 0 <= answer < len(options)):
        raise UserError(
            f"{where}: answer={answer!r} must be one of the {len(options)} options, or its index"
            " from 0"
        )
    return Row(given["prompt"], list(options or ()), answer)


def encode(row: Row, tokenizer: "Tokenizer", config: ScoreOptions) -> Question:
    """Tokens of prompt and options; values are also ranked per byte of the option."""
    prompt = row.prompt
    if config.chat:
        prompt = tokenizer.conversation([{"role": "user", "content": prompt}])
    prompt, options, moved = encode_options(
        prompt, row.options, tokenizer, add_bos=config.add_bos, keeps_blanks=config.chat
    )
    divisors = tuple(float(len((moved + text).encode())) for text in row.options)
    return Question(prompt, options, divisors)


def summary(
    rows: Sequence[Row], found: Sequence[QuestionScores], config: ScoreOptions, seconds: float
) -> list[str]:
    """The lines that are printed."""
    scores = [score for question in found for score in question.options]
    lines = []
    if rows[0].answer is not None:
        for name, key in (("accuracy", "best"), ("accuracy per byte", "best_divided")):
            right = [getattr(q, key) == row.answer for q, row in zip(found, rows, strict=True)]
            share = sum(right) / len(right)
            error = math.sqrt(share * (1 - share) / max(1, len(right) - 1))
            lines.append(f"{name:<18} {share:.4f} +- {error:.4f} ({len(right)} questions)")
    else:
        for row, question in zip(rows, found, strict=True):
            values = "  ".join(f"{s.value:.3f} +- {s.stderr:.3f}" for s in question.options)
            lines.append(f"{row.options[question.best]!r:<24} {values}")
    if config.stop_level:
        decided = sum(bool(question.is_decided) for question in found)
        lines.append(f"{'decided':<18} {decided} of {len(found)} at {config.stop_level:g}")
    errors = [score.reuse_error for score in scores if score.reuse_error is not None]
    if errors:
        size = sum(map(abs, errors)) / len(errors)
        fate = "taken off" if config.reuse == "corrected" else "left in"
        lines.append(f"{'error of reuse':<18} {size:.4f} nats on average, {fate}")
    if config.reuse != "none":
        reused = sum(q.options[0].reuse_error is not None for q in found)
        others = "" if reused == len(found) else "; the others were read whole, which is exact and"
        others += " hardly more work" if others else ""
        lines.append(f"{'prompts reused':<18} {reused} of {len(found)} questions{others}")
    masks = sum(score.n for score in scores) / len(scores)
    canvases = sum(score.nfe for score in scores)
    lines.append(f"{'cost':<18} {masks:.1f} masks an option, {canvases} canvases, {seconds:.1f} s")
    return lines


def _write(name: str, rows: Sequence[Row], found: Sequence[QuestionScores]) -> None:
    from jaxllada.common.manifest import write_atomically

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    lines = []
    for number, (row, question) in enumerate(zip(rows, found, strict=True)):
        entry = {"question": number, "answer": row.answer, **dataclasses.asdict(question)}
        for option in entry["options"]:
            option.update({key: plain(value) for key, value in option.items()})
        lines.append(json.dumps(entry))
    write_atomically(Path(name), ("\n".join(lines) + "\n").encode())
