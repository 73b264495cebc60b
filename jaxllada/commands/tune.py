"""Finds fast sampling settings for a model and your prompts, and writes them as a preset.

    jaxllada tune output/quickstart/run --prompts_file prompts.txt --output_dir output/tune \\
        --gen_length 128 --sweep_steps 32 64 128 --sweep_cache none prefix dual
    jaxllada tune LLaDA-8B-Instruct --chat --prompts_file questions.txt --output_dir output/tune \\
        --preset gsm8k --sweep_selection fixed threshold:0.9 factor:1.0 --sweep_cache none dual
    jaxllada sample MODEL --preset output/tune/preset.yaml
    jaxllada play output/tune/reference.npz output/tune/chosen.npz --output both.html

Every combination answers all prompts and is compared with the slow reference decode: one token per
model call, no cache. An interrupted sweep goes on where it was.
"""

from jaxllada.apps import tune
from jaxllada.commands.opening import open_engine

Config = tune.TuneOptions


def run(config: Config) -> int:
    """Measures every setting, prints the table and writes the files."""
    return tune.run(config, open_engine)
