"""Settings of what is trained on what: the model, its rows and their noise."""

import dataclasses
from typing import ClassVar, Literal

from jaxllada.common.data.formats import Kind
from jaxllada.common.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowKeys:
    """Model, data and noise."""

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

    def require(self, key: str, holds: bool, right: str) -> None:
        """Raises a UserError that says what would be right, unless `holds`."""
        if not holds:
            raise UserError(f"{key}={getattr(self, key)!r}: expected {right}")
