"""Talks to a model in the terminal; /help lists the commands.

python -m npu_backend chat --model_name_or_path LLaDA-8B-Instruct --gen_length 128 --steps 64
python -m npu_backend chat --model_name_or_path output/my-sft --device cpu < questions.txt
"""

from dataclasses import dataclass

from jaxllada.apps import talk
from npu_backend.commands.opening import DeviceOptions, open_engine


@dataclass(frozen=True, kw_only=True)
class Config(talk.ChatOptions, DeviceOptions):
    pass


def run(config: Config) -> int:
    """Reads turns from the terminal, or line by line from a pipe, until /quit or the end."""
    return talk.run(config, open_engine)
