"""Settings of a training run: flat, with the names Hugging Face and the dllm tutorial gave them.

Units: lengths in tokens, rates per optimiser step, intervals in optimiser steps (a number below 1
is a share of the whole run). An empty string means "not set".
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from jaxllada.common.data.formats import Kind
from jaxllada.common.data.padding import trained_padding
from jaxllada.common.errors import UserError
from jaxllada.common.tracking import parse_report_to

Schedule = Literal["constant", "linear", "cosine", "wsd", "segments", "llada-sft", "dllm"]
_AT_LEAST_ONE = (
    *("num_proc", "max_length", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "logging_steps", "eval_mc", "r", "mesh_fsdp", "mesh_tensor"),
    *("max_skipped_steps", "pad_to_multiple"),
)
_NOT_NEGATIVE = (
    *("seed", "learning_rate", "warmup_steps", "adam_epsilon", "weight_decay", "max_grad_norm"),
    *("eval_max_rows", "save_steps", "save_total_limit", "sample_length", "max_rollbacks"),
    "sample_steps",
    "repeat_data",
)
_SHARES = (
    *("random_length_ratio", "warmup_ratio", "lr_decay_ratio", "min_lr_ratio", "lora_dropout"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run; `__post_init__` refuses what could not work, with the key and its value."""

    kind: ClassVar[Kind] = "auto"
    """What rows a verb takes: running text or answers, or either."""

    model_name_or_path: str = "llada-100m"
    """Preset name, config.json or folder without weights (start from scratch), or a folder with
    weights or a run folder (continue from those weights)."""
    tokenizer_name_or_path: str = ""
    """Tokenizer folder; empty: the one beside the model or the prepared data."""

    dataset_args: str = ""
    """What to train on, for example `data/c4[train:1000_000,test:1000]` or `pystdlib`."""
    text_field: str = "text"
    """Column that holds the text."""
    streaming: bool = False
    """Read the source while training instead of preparing it first."""
    num_proc: int = 1
    """Processes that tokenise."""
    drop_tail: bool = True
    """Drop the last, short piece of the packed text instead of training on it."""
    max_length: int = 1024
    """Tokens per row."""
    truncation: Literal["right", "filter"] = "right"
    """Prompt/answer rows longer than max_length: keep the first tokens, or filter them out."""
    mask_prompt_loss: bool = True
    """Prompt/answer rows: count only answers in the loss."""
    dialogue_turns: Literal["random", "last"] = "random"
    """Train on one answer of a dialogue drawn at each visit (LLaDA, B.1), or on the last."""
    on_bad_row: Literal["skip", "error"] = "skip"
    """Rows without an answer or text, broken lines and the like: leave them out and say which, or
    stop at the first."""
    load_preprocessed_data: bool = False
    """dataset_args names folders written by `save_to_disk`."""
    insert_eos: bool = True
    """End every document with EOS."""
    repeat_data: int = 0
    """Use only so many rows, chosen by the seed, that max_steps steps see each of them this often;
    0: all rows."""
    random_length_ratio: float = 0.01
    """Share of rows cut to a random length U{1..max_length} (LLaDA, arXiv:2502.09992v3, 2.2)."""
    random_length_mode: Literal["sequence", "batch"] = "sequence"
    """Draw the random length for every row on its own, or once for a whole batch."""

    loss_norm: Literal["token", "sequence", "batch"] = "token"
    """Divide the loss by all counted tokens, by the tokens of each row and the rows, or by the
    rows alone; always over the global batch."""
    pad_policy: str = ""
    """EOS behind prompt/answer rows: eos_supervised trains on all up to the longest row of the
    batch (empty: this, as LLaDA does), eos_capped:N on N of each row, ignore on none."""
    pad_to_multiple: int = 64
    """Prompt/answer rows: batches are rounded up to this width, so that few shapes are compiled;
    what is added is not trained on."""
    group_by_length: bool = False
    """Prompt/answer rows: put rows of similar length into one batch, so that less is padding."""
    time_sampling: Literal["iid", "antithetic", "stratified"] = "iid"
    """How mask rates spread over a batch; the distribution of each row is uniform in all three."""
    time_epsilon: float = 1e-3
    """Smallest mask rate: bounds the 1/t weight of the loss."""

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

    def __post_init__(self) -> None:
        for key in _AT_LEAST_ONE:
            self._require(key, getattr(self, key) >= 1, "at least 1")
        for key in _NOT_NEGATIVE:
            self._require(key, 0 <= getattr(self, key) < math.inf, "0 or more")
        for key in _SHARES:
            self._require(key, 0 <= getattr(self, key) <= 1, "between 0 and 1")
        for key in ("adam_beta1", "adam_beta2", "ema_decay"):
            self._require(key, 0 <= getattr(self, key) < 1, "at least 0 and below 1")
        self._require("lora_dropout", self.lora_dropout < 1, "below 1")
        self._require("lora_alpha", 0 < self.lora_alpha < math.inf, "above 0")
        self._require("seed", self.seed < 2**32, "below 2**32")
        self._require("time_epsilon", 0 < self.time_epsilon < 1, "above 0 and below 1")
        self._require("rollback_lr_factor", 0 < self.rollback_lr_factor <= 1, "above 0, at most 1")
        for key in ("mesh_data", "num_processes"):
            self._require(key, getattr(self, key) == -1 or getattr(self, key) >= 1, "-1 or above 0")
        self._require("max_steps", self.max_steps == -1 or self.max_steps > 0, "-1 or above 0")
        self._require("num_train_epochs", self.num_train_epochs > 0, "above 0")
        has_length = self.max_steps > 0 and not self.streaming
        self._require(
            "repeat_data",
            has_length or not self.repeat_data,
            "0 unless max_steps is set and streaming is false",
        )
        self._require("output_dir", bool(self.output_dir.strip()), "a folder")
        self._require(
            "eval_strategy",
            not (self.eval_strategy == "epoch" and self.streaming),
            "no or steps beside streaming: true, which has no epochs",
        )
        self._require("eval_steps", self.eval_steps > 0 or self.eval_strategy != "steps", "above 0")
        for key in ("eval_steps", "save_steps", "sample_steps"):
            value = getattr(self, key)
            self._require(key, value < 1 or value == int(value), "a whole number, or a share < 1")
        self._require(
            "warmup_ratio",
            not (self.warmup_ratio and self.warmup_steps),
            f"left out beside warmup_steps={self.warmup_steps}",
        )
        if self.pad_policy:
            trained_padding(self.pad_policy)
        self._require(
            "group_by_length",
            not (self.group_by_length and self.streaming),
            "false beside streaming: true, which knows no lengths ahead",
        )
        self._check_named_schedule()
        uses_segments = self.lr_scheduler_type == "segments"
        self._require(
            "lr_segments",
            bool(self.lr_segments) == uses_segments,
            "set together with lr_scheduler_type: segments"
            if self.lr_segments
            else "a list of segments when lr_scheduler_type is segments",
        )
        self._require(
            "remat",
            not (self.gradient_checkpointing and self.remat not in ("none", "full")),
            "left out beside gradient_checkpointing: true",
        )
        self._require(
            "coordinator_address",
            not self.coordinator_address or self.num_processes > 1,
            "left out unless num_processes is above 1",
        )
        self.profile_window  # noqa: B018  # raises on a malformed window
        self.trackers  # noqa: B018  # raises on an unknown name

    def _check_named_schedule(self) -> None:
        """A schedule with a name has its own decay; changing it needs the plain ones."""
        if self.lr_scheduler_type not in ("llada-sft", "dllm"):
            return
        for key, default in (("lr_decay_ratio", 0.1), ("min_lr_ratio", 0.0)):
            plain = "wsd" if self.lr_scheduler_type == "llada-sft" else "cosine"
            self._require(
                key,
                getattr(self, key) == default,
                f"left out beside lr_scheduler_type: {self.lr_scheduler_type}; use {plain}",
            )

    def _require(self, key: str, holds: bool, right: str) -> None:
        if not holds:
            raise UserError(f"{key}={getattr(self, key)!r}: expected {right}")

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

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain YAML values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def interval(value: float, total: int) -> int:
    """Steps of an interval that is given in steps, or below 1 as a share of `total`; 0 is never."""
    return math.ceil(value * total) if value < 1 else int(value)
