"""Settings of supervised fine-tuning: those of training, with the values LLaDA was tuned with."""

import dataclasses
from typing import ClassVar, Literal

from jaxllada.common.config.train import Schedule, TrainConfig
from jaxllada.common.data.formats import Kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig(TrainConfig):
    """One fine-tuning run on prompts and answers (LLaDA, arXiv:2502.09992v3, section 2.3)."""

    kind: ClassVar[Kind] = "sft"

    random_length_ratio: float = 0.0
    """Is for running text: 0."""
    loss_norm: Literal["token", "sequence", "batch"] = "sequence"
    """sequence is equation 5: each answer over its own length, EOS padding included. token lets
    long answers weigh more; batch divides by the rows alone."""
    learning_rate: float = 2.5e-5
    """Peak rate; LoRA wants about ten times as much."""
    lr_scheduler_type: Schedule = "llada-sft"
    """llada-sft is the published schedule, dllm that of the dllm trainer; see the others in the
    help of pretrain."""
    num_train_epochs: float = 3.0
    """Passes over the training rows, when max_steps is -1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("random_length_ratio", self.random_length_ratio == 0, "0: it cuts text")
