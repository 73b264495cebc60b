"""Scores questions with options by their likelihood, and tells the accuracy.

    jaxllada score output/run --questions_file questions.jsonl
    jaxllada score LLaDA-8B-Base --questions_file questions.jsonl --stop_level 0.95 --cfg_scale 0.5
    jaxllada score iLLaDA-Base --questions_file questions.jsonl --method confidence --padd_eos true

Every line of the file is {"prompt": ..., "options": [...], "answer": index}. Results go to stdout.
"""

from jaxllada.apps import score
from jaxllada.commands.opening import open_engine

Config = score.ScoreOptions


def run(config: Config) -> int:
    """Scores every question and prints accuracy with its standard error."""
    return score.run(config, open_engine)
