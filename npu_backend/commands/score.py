"""Scores questions with options by their likelihood, and tells the accuracy.

    python -m npu_backend score output/run --questions_file questions.jsonl
    python -m npu_backend score LLaDA-8B-Base --questions_file questions.jsonl --stop_level 0.95

Every line of the file is {"prompt": ..., "options": [...], "answer": index}. Results go to stdout.
The masks are those of `jaxllada score`, so the values are too.
"""

from dataclasses import dataclass

from jaxllada.apps import score
from npu_backend.commands.opening import DeviceKeys, open_engine


@dataclass(frozen=True, kw_only=True)
class Config(DeviceKeys, score.ScoreOptions):
    pass


def run(config: Config) -> int:
    """Scores every question and prints accuracy with its standard error."""
    return score.run(config, open_engine)
