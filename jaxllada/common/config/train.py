"""Settings of a training run: flat, with the names Hugging Face and the dllm tutorial gave them.

Units: lengths in tokens, rates per optimiser step, intervals in optimiser steps (a number below 1
is a share of the whole run). An empty string means "not set".
"""

import dataclasses
import math
from typing import Any, Literal

from jaxllada.common.config.train_checks import check_train
from jaxllada.common.config.train_rows import RowKeys
from jaxllada.common.errors import UserError
from jaxllada.common.tracking import parse_report_to

Schedule = Literal["constant", "linear", "cosine", "wsd", "segments", "llada-sft", "dllm"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RowKeys):
    """How it is trained, evaluated and saved.

    `__post_init__` refuses what could not work, with the key and its value.
    """

    output_dir: str = "output"
    """Run folder: config, tokenizer, checkpoints, metrics.jsonl, loss.png, samples."""
    overwrite_output_dir: bool = False
    """Delete an earlier run found in output_dir."""
    run_name: str = ""
    """Name shown by the trackers; empty: the name of output_dir."""
    seed: int = 42
    """Seed of the weights, the data order, the noise and dropout."""

    learning_rate: float = 3e-4
    """Peak rate."""
    lr_scheduler_type: Schedule = "cosine"
    """Shape after warm-up; wsd holds the peak and decays over the last lr_decay_ratio. llada-sft:
    50 steps of warm-up (a tenth of runs below 500), the peak, the last tenth down to a tenth of it.
    dllm: a tenth of warm-up, then cosine to 0. Both take a warmup_steps or warmup_ratio instead."""
    warmup_steps: int = 0
    """Steps from 0 to the peak."""
    warmup_ratio: float = 0.0
    """The same as a share of the run, used when warmup_steps is 0."""
    lr_decay_ratio: float = 0.1
    """wsd only: share of the run over which the rate falls."""
    min_lr_ratio: float = 0.0
    """Rate at the end of linear, cosine and wsd, as a share of the peak."""
    lr_segments: str = ""
    """segments only: `END: rate` or `END: from -> to`, joined by `;`. END is a step or, with K, M,
    B or T, a token count. LLaDA-8B: `2000: 0 -> 4e-4; 1.2T: 4e-4; 2T: 1e-4; 2.3T: 1e-4 -> 1e-5`."""
    max_steps: int = -1
    """Optimiser steps of the run; -1: num_train_epochs decides."""
    num_train_epochs: float = 1.0
    """Passes over the training rows, when max_steps is -1."""
    per_device_train_batch_size: int = 8
    """Rows per device and micro-batch (devices of one tensor group count as one)."""
    per_device_eval_batch_size: int = 8
    """Rows per device in evaluation."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimiser step."""
    adam_beta1: float = 0.9
    """AdamW: decay of the first moment."""
    adam_beta2: float = 0.95
    """AdamW: decay of the second moment."""
    adam_epsilon: float = 1e-8
    """AdamW: added to the root of the second moment."""
    weight_decay: float = 0.1
    """AdamW: decoupled decay of matrices and embeddings (never of norms and biases)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0: never."""
    ema_decay: float = 0.0
    """Decay of an exponential average of the weights, kept beside them; 0: none."""

    lora: bool = False
    """Train low-rank adapters instead of all weights."""
    r: int = 32
    """LoRA: rank."""
    lora_alpha: float = 64.0
    """LoRA: updates are scaled by lora_alpha / r."""
    use_rslora: bool = False
    """LoRA: scale by lora_alpha / sqrt(r) instead (arXiv:2312.03732)."""
    lora_dropout: float = 0.05
    """LoRA: dropout before the adapters."""
    target_modules: str = "all-linear"
    """LoRA: comma-separated module names, or all-linear."""

    bf16: bool | None = None
    """Compute in bfloat16; trained weights, optimiser, losses and norms stay in float32. Left out:
    only where adapters are trained on weights that are stored in bfloat16."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of the trained weights; bfloat16 rounds small updates away. LoRA: of the frozen ones;
    those stored in bfloat16 are kept so."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (remat: full)."""
    remat: str = "none"
    """What to recompute in the backward pass, by policy name: none, full, dots, ..."""
    attn_implementation: str = "auto"
    """Attention kernel: auto, xla, cudnn."""

    mesh_data: int = -1
    """Devices that split the batch and hold whole weights; -1: all that the other axes leave."""
    mesh_fsdp: int = 1
    """Devices that split the batch and the weights."""
    mesh_tensor: int = 1
    """Devices that split heads and hidden units of one row."""
    coordinator_address: str = ""
    """host:port of process 0 in a run of several processes; empty: one process, or what the
    cluster manager announces when num_processes is -1."""
    num_processes: int = 1
    """Processes of the run; -1: ask the cluster manager."""
    process_id: int = -1
    """Number of this process; -1: ask the cluster manager."""

    logging_steps: int = 10
    """Interval of metrics.jsonl."""
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to evaluate: never, or at the start, the end and every eval_steps or epoch between."""
    eval_steps: float = 0.1
    """Interval of evaluation."""
    eval_mc: int = 1
    """Noise draws per validation row."""
    eval_max_rows: int = 512
    """Validation rows used; 0: all."""
    save_steps: float = 0.1
    """Interval of checkpoints; 0: only at the end."""
    save_total_limit: int = 2
    """Newest checkpoints kept; 0: all."""
    save_best: bool = True
    """Also keep the checkpoint with the lowest validation bound."""
    report_to: str | tuple[str, ...] = "none"
    """Trackers beside metrics.jsonl, a list or comma-separated: none, tensorboard, wandb, swanlab,
    mlflow, or all."""
    sample_prompts: tuple[str, ...] = ()
    """Texts continued into samples/; none: one text from nothing. Of a run on prompts and answers
    they are questions, answered in the chat template."""
    sample_steps: float = 0.0
    """Interval of samples; 0: one with every checkpoint."""
    sample_length: int = 64
    """New tokens per text sample; 0: no samples."""
    resume: str = "never"
    """auto: continue the newest sound checkpoint of output_dir, if any; or a checkpoint folder."""
    profile: str = ""
    """`10:13` writes a profiler trace of steps 10 to 12 to output_dir/profile."""
    compile_cache_dir: str = ""
    """Compiled programs are kept here; empty: ~/.cache/jaxllada/xla (or $JAXLLADA_CACHE/xla); none:
    not kept."""

    max_skipped_steps: int = 5
    """Steps in a row with a non-finite loss or gradient after which the run rolls back."""
    rollback_lr_factor: float = 0.25
    """A rollback multiplies the learning rate by this (LLaDA's own cure was 4e-4 to 1e-4)."""
    max_rollbacks: int = 3
    """Rollbacks after which the run gives up."""
    loss_spike: Literal["ignore", "warn", "rollback"] = "warn"
    """A loss that jumps but stays finite: ignore it, warn, or roll back as well (and only warn when
    max_rollbacks are used up)."""
    spike_sigma: float = 4.0
    """A step is a spike when its masked tokens cost so many standard deviations more than tokens
    at the same mask rates did lately."""
    max_spiking_steps: int = 10
    """Spikes in a row after which the run warns or rolls back."""

    def __post_init__(self) -> None:
        check_train(self)
        self.profile_window  # noqa: B018  # raises on a malformed window
        self.trackers  # noqa: B018  # raises on an unknown name

    @property
    def remat_policy(self) -> str:
        """Name of the rematerialisation policy in force."""
        return "full" if self.gradient_checkpointing else self.remat

    @property
    def trackers(self) -> tuple[str, ...]:
        """The tracker names of `report_to`."""
        return parse_report_to(self.report_to)

    @property
    def profile_window(self) -> tuple[int, int] | None:
        """First step and the step after the last one to profile, or None."""
        if not self.profile:
            return None
        first, _, last = self.profile.partition(":")
        if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise UserError(f"profile={self.profile!r}: expected FIRST:LAST, for example 10:13")
        return int(first), int(last)

    def total_steps(self, steps_per_epoch: float | None) -> int:
        """Optimiser steps of the run; `steps_per_epoch` is None where epochs have no known end."""
        if self.max_steps > 0:
            return self.max_steps
        if steps_per_epoch is None:
            raise UserError("max_steps=-1: a streaming run needs a number of steps")
        return max(1, math.ceil(self.num_train_epochs * steps_per_epoch))

    def eval_interval(self, total: int, steps_per_epoch: float | None) -> int:
        """Steps between evaluations of a run of `total` steps; 0: only at the ends."""
        if self.eval_strategy == "no":
            return 0
        if self.eval_strategy == "epoch":
            return max(1, round(steps_per_epoch or 0))
        return interval(self.eval_steps, total)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain YAML values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def interval(value: float, total: int) -> int:
    """Steps of an interval that is given in steps, or below 1 as a share of `total`; 0 is never."""
    return math.ceil(value * total) if value < 1 else int(value)
