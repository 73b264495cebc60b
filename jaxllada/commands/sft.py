"""Fine-tunes a masked-diffusion language model on answers (LLaDA, arXiv:2502.09992v3, section 2.3).

    jaxllada sft configs/sft/llada-8b.yaml
    jaxllada sft --model_name_or_path output/quickstart/run --dataset_args data/alpaca.json

Equation 5: prompts are never masked, each answer is averaged over its own length, the EOS it is
padded with included. Files and keys are those of `pretrain`; `sample_prompts` are questions.
"""

from jaxllada.common.config.sft import SftConfig

Config = SftConfig


def run(config: SftConfig) -> int:
    """Trains; returns 0, 1 after divergence, or 128 + the number of the signal that stopped it."""
    from jaxllada.commands import pretrain

    return pretrain.run(config)
