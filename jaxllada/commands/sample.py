"""Generates text from prompts.

    jaxllada sample --model_name_or_path output/quickstart --prompt "def " --animate
    jaxllada sample --model_name_or_path LLaDA-8B-Instruct --chat --prompt "Who wrote Faust?"

Answers go to stdout, everything else to stderr. Without a prompt, documents are sampled from
their beginning.
"""

from jaxllada.apps import sample
from jaxllada.commands.opening import open_engine

Config = sample.SampleOptions


def run(config: Config) -> int:
    """Prints every answer; the text of special tokens is left out."""
    return sample.run(config, open_engine)
