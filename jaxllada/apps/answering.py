"""What `sample` and `chat` share: which model answers, and with which sampling options."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllada.common.config.compute import Dtype
from jaxllada.common.config.sampling import Compat, Remasking, SamplingConfig
from jaxllada.common.engine import Engine
from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.common.tokenizer import Tokenizer

USUAL_BLOCK = 32

OpenEngine = Callable[[Any, Path], Engine]
"""(options, model folder) -> the engine of a backend; raises `UserError`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Keys of every verb that generates text."""

    model_name_or_path: str = field(metadata={"positional": True})
    """Model folder: a released one, or the output_dir of a training run."""
    tokenizer_name_or_path: str = ""
    """Folder with tokenizer.json, if it is not in the model folder."""
    average: bool | None = None
    """Take the exponential average of a run's weights; by default where the run kept one."""
    dtype: Dtype | None = None
    """Type of weights and activations; the stored one by default."""
    gen_length: int | None = None
    """Answer length in tokens; 128, or the largest power of two the context has room for."""
    max_length: int | None = None
    """Another name for gen_length."""
    steps: int | None = None
    """Model calls for the whole answer; one per token by default."""
    block_length: int | None = None
    """Tokens per block; 32 if that divides the answer, else the whole answer."""
    temperature: float = 0.0
    """Scale of the Gumbel noise on the logits; 0 picks the most likely tokens."""
    cfg_scale: float = 0.0
    """Strength of unsupervised classifier-free guidance; 0 turns it off and is twice as fast."""
    remasking: Remasking = "low_confidence"
    """Which predictions stay masked: low_confidence ones or random ones."""
    logits_eos_inf: bool = False
    """Never predict the end-of-sequence token."""
    confidence_eos_eot_inf: bool = False
    """Commit end tokens last within a block."""
    compat: Compat | None = None
    """official-2025 repeats the accidental behaviour of the released sampler."""
    stop_at_eos: bool = True
    """Stop after the block that holds the first end-of-sequence token."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if None not in (self.gen_length, self.max_length) and self.gen_length != self.max_length:
            raise UserError(
                f"gen_length={self.gen_length} and max_length={self.max_length} are two names of"
                " one setting: give one of them"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must lie in [0, 2**32)")
        self.sampling(room=128)

    def sampling(self, room: int, eot_token_id: int | None = None) -> SamplingConfig:
        """The sampler's options for a context that has `room` for an answer."""
        length = self.gen_length if self.gen_length is not None else self.max_length
        if length is None:
            length = min(128, 2 ** (max(1, room).bit_length() - 1))
        block = self.block_length
        if block is None:
            block = USUAL_BLOCK if length % USUAL_BLOCK == 0 else length
        return SamplingConfig(
            steps=length if self.steps is None else self.steps,
            gen_length=length,
            block_length=block,
            temperature=self.temperature,
            cfg_scale=self.cfg_scale,
            remasking=self.remasking,
            logits_eos_inf=self.logits_eos_inf,
            confidence_eos_eot_inf=self.confidence_eos_eot_inf,
            eot_token_id=eot_token_id,
            compat=self.compat,
            stop_at_eos=self.stop_at_eos,
        )


def open_model(options: Options, open_engine: OpenEngine) -> "tuple[Engine, Tokenizer]":
    """Reads tokenizer and model; raises `UserError` where they are missing or do not fit."""
    from jaxllada.common.run.checkpoints import is_run_folder
    from jaxllada.common.run.origin import find_model, find_tokenizer

    origin = find_model(options.model_name_or_path)
    if not origin.is_trained or origin.folder is None:
        raise UserError(
            f"model_name_or_path={options.model_name_or_path}: there are no weights;"
            " give a released model folder or the output_dir of a run that has saved a checkpoint"
        )
    if options.average is not None and not is_run_folder(origin.folder):
        given = str(options.average).lower()
        raise UserError(f"average={given}: only training runs keep an average of their weights")
    tokenizer = find_tokenizer(options.tokenizer_name_or_path, origin)
    tokenizer.agree_with(origin.config)
    return open_engine(options, origin.folder), tokenizer
