"""Generates text from prompts.

    python -m npu_backend sample --model_name_or_path output/quickstart --prompt "def " --animate
    python -m npu_backend sample --model_name_or_path LLaDA-8B-Instruct --chat --prompt "Hello"

Answers go to stdout, everything else to stderr. Without a prompt, documents are sampled from
their beginning. A seed gives the same noise on every device, but not that of `jaxllada sample`.
"""

from dataclasses import dataclass

from jaxllada.apps import sample
from npu_backend.commands.opening import DeviceOptions, open_engine


@dataclass(frozen=True, kw_only=True)
class Config(sample.SampleOptions, DeviceOptions):
    pass


def run(config: Config) -> int:
    """Prints every answer; the text of special tokens is left out."""
    return sample.run(config, open_engine)
