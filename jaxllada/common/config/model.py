"""The model configuration: the released `config.json` of dense LLaDA, read and written unchanged.

Field names, defaults and meanings are those of the released configuration class (LLaDA,
arXiv:2502.09992v3, section 2.1 and appendix B); values this project cannot run are refused here.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jaxllada.common.errors import UserError

ACTIVATIONS = ("gelu", "relu", "silu", "swiglu")
BLOCK_TYPES = ("llama", "sequential")
NORMS = ("default", "low_precision", "rms", "gemma_rms")
INITIALIZERS = ("mitchell", "normal", "kaiming_normal", "fan_in", "full_megatron")

# Field -> the only value (or values) that can be run, and why.
_SUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "alibi": ((False,), "the released forward pass asserts it off"),
    "rope": ((True,), "the released forward pass needs rotary positions"),
    "activation_type": (ACTIVATIONS, ""),
    "block_type": (BLOCK_TYPES, "'parallel' has no released implementation"),
    "layer_norm_type": (NORMS, "'amd_compatible' has no released implementation"),
    "init_fn": (INITIALIZERS, ""),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One dense LLaDA model; every field of the released `config.json`, defaults of its class.

    Unknown fields are kept in `extra` and written back. `from_dict(d).to_dict() == d` for every
    supported `d`. Raises `UserError` for a value that cannot be run.
    """

    d_model: int = 768
    n_heads: int = 12
    n_kv_heads: int | None = None
    multi_query_attention: bool | None = None
    n_layers: int = 12
    mlp_ratio: int | float = 4
    mlp_hidden_size: int | None = None
    activation_type: str = "swiglu"
    block_type: str = "sequential"
    block_group_size: int = 1
    alibi: bool = False
    alibi_bias_max: float = 8.0
    rope: bool = False
    rope_full_precision: bool = True
    rope_theta: float = 10000.0
    flash_attention: bool = False
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    embedding_dropout: float = 0.1
    input_emb_norm: bool = False
    attention_layer_norm: bool = False
    attention_layer_norm_with_affine: bool = True
    layer_norm_type: str = "default"
    layer_norm_with_affine: bool = True
    rms_norm_eps: float = 1e-5
    bias_for_layer_norm: bool | None = None
    include_bias: bool = False
    include_qkv_bias: bool = False
    max_sequence_length: int = 1024
    scale_logits: bool = False
    vocab_size: int = 50257
    embedding_size: int | None = 50304
    weight_tying: bool = True
    eos_token_id: int = 50256
    pad_token_id: int = 50256
    mask_token_id: int | None = 50256
    init_device: str | None = None
    init_fn: str = "normal"
    init_std: float = 0.02
    init_cutoff_factor: float | None = None
    precision: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    # Keys of the file this came from, in order: what was not there is not written unless changed.
    _keys: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, (values, reason) in _SUPPORTED.items():
            if getattr(self, name) not in values:
                listed = " or ".join(repr(value) for value in values)
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not supported: use {listed}"
                    + (f" ({reason})" if reason else "")
                )
        for name in (
            "d_model", "n_heads", "n_layers", "max_sequence_length", "vocab_size"
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must lie in [0, 1)")
        if self.d_model % self.n_heads:
            raise UserError(f"n_heads={self.n_heads} does not divide d_model={self.d_model}")
        if self.head_dim % 2:
            raise UserError(
                f"d_model={self.d_model} and n_heads={self.n_heads} give heads of width "
                f"{self.head_dim}: rotary positions need an even width"
            )
        if self.n_heads % self.kv_heads:
            raise UserError(f"n_kv_heads={self.kv_heads} does not divide n_heads={self.n_heads}")
        if self.n_layers % self.block_group_size:
            raise UserError(
                f"block_group_size={self.block_group_size} does not divide n_layers={self.n_layers}"
            )
        if self.activation_type == "swiglu" and self.block_type == "llama":
            # The released class halves the gate here and then multiplies different widths.
            raise UserError(
                "activation_type='swiglu' needs block_type='sequential': "
                "a 'llama' block multiplies gate and up itself, use 'silu'"
            )
        if self.ffn_width % 2 and self.activation_type == "swiglu":
            raise UserError(f"mlp_hidden_size={self.ffn_width} must be even for 'swiglu'")
        if self.embedding_size is not None and self.embedding_size < self.vocab_size:
            raise UserError(
                f"embedding_size={self.embedding_size} is smaller than vocab_size={self.vocab_size}"
            )
        for name in ("eos_token_id", "pad_token_id", "mask_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.rows:
                raise UserError(f"{name}={value} is not one of the {self.rows} embedding rows")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads in use, from `n_kv_heads` and `multi_query_attention`."""
        if self.n_kv_heads is None:
            return 1 if self.multi_query_attention is True else self.n_heads
        if self.multi_query_attention is not None:
            expected = 1 if self.multi_query_attention else self.n_heads
            if self.n_kv_heads != expected:
                raise UserError(
                    f"n_kv_heads={self.n_kv_heads} contradicts multi_query_attention="
                    f"{self.multi_query_attention}: leave one of them null, or use {expected}"
                )
        return self.n_kv_heads

    @property
    def ffn_width(self) -> int:
        """Rows of the feed-forward input projection (twice the inner width for 'swiglu')."""
        if self.mlp_hidden_size is not None:
            return self.mlp_hidden_size
        return int(self.mlp_ratio * self.d_model)

    @property
    def rows(self) -> int:
        """Number of embedding rows and of logits per position, at least `vocab_size`."""
        return self.embedding_size if self.embedding_size is not None else self.vocab_size

    @property
    def norm_bias(self) -> bool:
        """Whether norms carry a bias; the released class gives one to every kind."""
        return self.include_bias if self.bias_for_layer_norm is None else self.bias_for_layer_norm

    @property
    def is_causal(self) -> bool:
        """Whether positions see only those before them: the autoregressive twin, `qwen2.py`."""
        return False

    @property
    def mask_id(self) -> int:
        """`mask_token_id`, which every diffusion model needs."""
        if self.mask_token_id is None:
            raise UserError("mask_token_id is null in the model's config.json: set it to the id")
        return self.mask_token_id

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Reads a `config.json` mapping; unknown keys go to `extra`."""
        known = {f.name: f for f in dataclasses.fields(cls) if f.name not in ("extra", "_keys")}
        given = {key: value for key, value in values.items() if key in known}
        for key, value in given.items():
            _check_type(key, value, known[key].type)
        extra = {key: value for key, value in values.items() if key not in known}
        return cls(**given, extra=extra, _keys=tuple(values))

    def to_dict(self) -> dict[str, Any]:
        """Returns the `config.json` mapping: every key that was read, plus what differs since."""
        own = [f for f in dataclasses.fields(self) if f.name not in ("extra", "_keys")]
        values = {f.name: getattr(self, f.name) for f in own}
        if not self._keys:
            return {
                "model_type": "llada",
                "architectures": ["LLaDAModelLM"],
                **values,
                **self.extra,
            }
        defaults = {f.name: f.default for f in own}
        everything = {**values, **self.extra}
        result = {key: everything[key] for key in self._keys if key in everything}
        changed = {k: v for k, v in values.items() if k not in result and v != defaults[k]}
        return result | changed | {k: v for k, v in self.extra.items() if k not in result}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` into an existing folder, replacing it in one step."""
        file = Path(folder) / "config.json"
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, file)


def _check_type(key: str, value: Any, annotation: Any) -> None:
    allowed = getattr(annotation, "__args__", (annotation,))
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, bool) and bool not in allowed:
        pass
    elif isinstance(value, tuple(allowed)) or (is_number and float in allowed):
        return
    names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
    raise UserError(f"{key}={value!r} has the wrong type, expected {names}")
