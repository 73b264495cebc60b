"""Settings of the verb evaluate, with the names of `pretrain` where they mean the same."""

import dataclasses

from jaxllada.common.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation; keys left empty are those of the run, or the defaults of `pretrain`."""

    model_name_or_path: str = dataclasses.field(default="", metadata={"positional": True})
    """Run folder, or folder with config.json and safetensors."""
    step: int = -1
    """Checkpoint of a run folder; -1: the newest sound one."""
    adapter: str = ""
    """LoRA adapter to add to the model: a PEFT folder, a run that trained one, or an id."""
    tokenizer_name_or_path: str = ""
    """Tokenizer folder; empty: the one beside the model."""
    dataset_args: str = ""
    """Data with a test split; the train split is counted for the unigram baseline."""
    text_field: str = ""
    """Column that holds the text."""
    max_length: int = 0
    """Tokens per row."""
    load_preprocessed_data: bool = False
    """dataset_args names folders written by `save_to_disk`."""
    num_proc: int = 1
    """Processes that tokenise."""
    eval_mc: int = 4
    """Noise draws per row."""
    eval_max_rows: int = 0
    """Validation rows used; 0: all."""
    per_device_eval_batch_size: int = 8
    """Rows per device."""
    seed: int = -1
    """Seed of the noise; -1: that of the run."""
    bf16: bool = False
    """Compute in bfloat16."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise UserError("no model given: expected evaluate MODEL_FOLDER")
