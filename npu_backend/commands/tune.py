"""Finds fast sampling settings for a model and your prompts, and writes them as a preset.

    python -m npu_backend tune LLaDA-8B-Instruct --chat --prompts_file questions.txt \\
        --output_dir output/tune --preset gsm8k --sweep_selection fixed threshold:0.9 \\
        --sweep_cache none prefix dual
    python -m npu_backend sample MODEL --preset output/tune/preset.yaml

Every combination answers all prompts and is compared with the slow reference decode: one token per
model call, no cache. An interrupted sweep goes on where it was.
"""

from dataclasses import dataclass

from jaxllada.apps import tune
from npu_backend.commands.opening import DeviceOptions, open_engine


@dataclass(frozen=True, kw_only=True)
class Config(tune.TuneOptions, DeviceOptions):
    pass


def run(config: Config) -> int:
    """Measures every setting, prints the table and writes the files."""
    return tune.run(config, open_engine)
