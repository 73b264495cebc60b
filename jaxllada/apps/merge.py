"""Adds a LoRA adapter to its base and writes a complete model folder.

    jaxllada merge --model_name_or_path LLaDA-8B-Base --adapter output/lora --output_dir merged
    jaxllada merge --adapter output/lora --output_dir merged

The adapter is a PEFT folder or a run that trained one; without model_name_or_path its base is the
one it names. Sums are taken in float32 and rounded once, to the type the base is stored in. Then
logits of base and adapter are compared with those of the merged folder. Exit code 1: they differ by
more than that rounding explains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllada.apps import export as app
from jaxllada.common.config.compute import Dtype
from jaxllada.common.errors import UserError
from jaxllada.common.sizes import parse_bytes

if TYPE_CHECKING:
    from jaxllada.common.weights.adapter import Adapter
    from jaxllada.common.weights.source import Source

_ALIASES = {
    "base_model_path": "model_name_or_path",
    "lora_path": "adapter",
    "merge_path": "output_dir",
}
# Share of the largest logit by which logits may move. float32: sums in another order. bfloat16: all
# weights keep 8 bits, each of whose roundings moves a product by up to 0.4 %.
_ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}


@dataclass(frozen=True, kw_only=True)
class Config:
    model_name_or_path: str = ""
    """Base: model folder, training run or Hub id; empty: the one the adapter names."""
    adapter: str = ""
    """Adapter: a PEFT folder, a run that trained one, or an id."""
    output_dir: str = ""
    """New folder."""
    base_model_path: str = ""
    """The tutorial's name of model_name_or_path."""
    lora_path: str = ""
    """The tutorial's name of adapter."""
    merge_path: str = ""
    """The tutorial's name of output_dir."""
    dtype: Dtype | None = None
    """Type to store; that of the base by default. float16 is refused for a base in bfloat16."""
    shard_size: str = app.SHARD_SIZE
    """Most bytes of a weight file."""
    overwrite: bool = False
    """Replace output_dir, once the result is complete."""
    check_logits: bool = True
    """Compare logits before and after; needs memory for the model in logits_dtype."""
    logits_dtype: Dtype = "float32"
    """Type in which both are computed."""

    def __post_init__(self) -> None:
        for alias, key in _ALIASES.items():
            given, also = getattr(self, key), getattr(self, alias)
            if given and also and given != also:
                raise UserError(f"{key}={given} and {alias}={also} are the same key: give one")
        for key in ("adapter", "output_dir"):
            if not self.path(key):
                raise UserError(f"{key}: not set; expected a folder")
        parse_bytes(self.shard_size, "shard_size")

    def path(self, key: str) -> str:
        """The value of a key, or of its alias."""
        alias = next(alias for alias, name in _ALIASES.items() if name == key)
        return (getattr(self, key) or getattr(self, alias)).strip()


OpenSource = Callable[[Path, str | None], "Source"]
"""(model folder, adapter or None) -> source; an adapter folder alone is opened with its base."""
Logits = Callable[[Path, "Adapter | None", str, np.ndarray, np.ndarray], np.ndarray]
"""(model folder, adapter to put on it, dtype, ids [B, L], mask [B, L]) -> logits in float32."""


def run(config: Config, open_source: OpenSource, logits: Logits) -> int:
    """Writes the folder and tells what merging changed; returns 1 where it is too much."""
    from jaxllada.common.partial import check_free_name
    from jaxllada.common.weights.adapted import adapter_folder, base_folder
    from jaxllada.common.weights.adapter import MergedSource
    from jaxllada.common.weights.hub import local_folder
    from jaxllada.common.weights.layouts import FOLDERS

    target, named = Path(config.path("output_dir")), config.path("model_name_or_path")
    check_free_name(target, overwrite=config.overwrite)
    adapter = adapter_folder(local_folder(config.path("adapter")))
    if adapter is None:
        raise UserError(
            f"adapter={config.path('adapter')}: neither a PEFT folder nor a run that trained one"
        )
    base = local_folder(named) if named else base_folder(adapter)
    source = open_source(base, str(adapter))
    assert isinstance(source, MergedSource)
    stored = source.stored.name
    try:
        if stored == "bfloat16" and config.dtype == "float16":
            raise UserError(
                "dtype=float16: the base is stored in bfloat16, whose range float16 does not have; "
                "leave dtype out, or take float32"
            )
        layout: Any = source.kind if source.kind in FOLDERS else None
        settings = app.Config(
            source=str(base),
            target=str(target),
            dtype=config.dtype,
            layout=layout,
            shard_size=config.shard_size,
            overwrite=config.overwrite,
        )
        print(f"base {base} ({stored}), adapter {adapter} (rank {source.adapter.r})")
        app.export(settings, source, {})
        if not config.check_logits:
            return 0
        return _compare(config, source, base, target, logits)
    finally:
        source.close()


def _compare(config: Config, source: Any, base: Path, target: Path, logits: Logits) -> int:
    from jaxllada.apps.verify import compare_logits, fixed_prompts

    prompts, dtype = fixed_prompts(source.config), config.logits_dtype
    plain = logits(base, None, dtype, *prompts)
    before = logits(base, source.adapter, dtype, *prompts)
    after = logits(target, None, dtype, *prompts)
    effect, found = (compare_logits(before, other, prompts[1]) for other in (plain, after))
    kinds = (config.dtype or source.stored.name, dtype)
    share = max(_ROUNDING[kind] for kind in kinds)
    if found["max_difference"] is None or effect["max_difference"] is None:
        print("logits: not finite; the merged folder is of no use")
        return 1
    print(
        f"logits in {dtype}, {found['positions']} positions: the adapter moves them by up to "
        f"{effect['max_difference']:.3g}, merging by {found['max_difference']:.3g} "
        f"(largest {found['largest_logit']:.3g}); the best token is the same at "
        f"{100 * found['same_best_token']:.1f} %"
    )
    if found["max_difference"] > share * max(1.0, found["largest_logit"]):
        print(f"error: rounding to {kinds[0]} explains {100 * share:g} % of the largest, not this")
        return 1
    if found["max_difference"] > effect["max_difference"] > 0:
        print(f"warning: rounding to {kinds[0]} moves logits more than the adapter does; ", end="")
        print("--dtype float32 keeps what it learnt")
    return 0
