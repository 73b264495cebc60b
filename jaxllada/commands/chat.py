"""Talks to a model in the terminal; /help lists the commands.

jaxllada chat --model_name_or_path LLaDA-8B-Instruct --gen_length 128 --steps 64
jaxllada chat --model_name_or_path output/my-sft < questions.txt
"""

from jaxllada.apps import talk
from jaxllada.commands.opening import open_engine

Config = talk.ChatOptions


def run(config: Config) -> int:
    """Reads turns from the terminal, or line by line from a pipe, until /quit or the end."""
    return talk.run(config, open_engine)
