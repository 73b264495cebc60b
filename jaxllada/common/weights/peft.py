"""LoRA adapters in the files of the PEFT library, for either layout of names.

An adapter folder holds `adapter_config.json` and `adapter_model.safetensors`; the second has
`base_model.model.{layer}.lora_A.weight` [r, in] and `lora_B.weight` [out, r] for every layer.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.config.family import read_config_json
from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.durable import DurableFiles, array_bytes
from jaxllada.common.errors import UserError
from jaxllada.common.weights.adapter import Adapter, Module, is_kernel
from jaxllada.common.weights.header import Stored, read_header
from jaxllada.common.weights.index import map_tensor, write_json
from jaxllada.common.weights.layouts import LAYOUTS, Layout, find_layout
from jaxllada.common.weights.names import Entry, entry_shape, llada_table
from jaxllada.common.weights.shards import Tensor, header

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."

# adapter_config.json key -> the values that mean plain LoRA on linear layers.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, "gaussian"),
    **dict.fromkeys(
        (
            "fan_in_fan_out", "use_dora", "lora_bias", "use_qalora", "use_bdlora",
            "modules_to_save", "layers_to_transform", "layer_replication", "rank_pattern",
            "alpha_pattern", "trainable_token_indices", "target_parameters",
        ),
        (None, False, [], {}),
    ),
}  # fmt: skip


def read_adapter(folder: str | os.PathLike[str], config: ModelConfig) -> Adapter:
    """Reads an adapter for a model of this configuration; names of both layouts are understood.

    Raises:
        UserError: kinds of adapters other than plain LoRA, factors of the head, names or shapes
            that do not fit the model, layers left out, damaged files.
    """
    folder = Path(folder)
    values = _read_config(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: an adapter folder has {WEIGHTS} (pickles are not opened)")
    tensors = read_header(file)
    pairs = _pairs(file, tensors)
    where = _modules(config, _layout(pairs))
    if strange := sorted(pairs.keys() - where.keys()):
        raise UserError(f"{file}: no linear layer of a block is called {_some(strange)}")
    r = values["r"]
    found: dict[Module, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for name, pair in pairs.items():
        a, b = (map_tensor(stored) for stored in pair)
        for entry, layer, rows in where[name]:
            part = b if rows is None else b[slice(*rows)]
            width, out = entry_shape(config, entry)
            if a.shape != (r, width) or part.shape != (out, r):
                raise UserError(
                    f"{file}: {name} has factors {a.shape} and {b.shape}, but r={r} and the "
                    f"model ask for {(r, width)} and {(out, r)} rows each"
                )
            found.setdefault(entry.path[:-1], {})[layer] = a, part
    return Adapter(
        {module: _stacked(file, config, module, layers) for module, layers in found.items()},
        r=r,
        lora_alpha=values["lora_alpha"],
        use_rslora=bool(values.get("use_rslora")),
        lora_dropout=float(values.get("lora_dropout") or 0),
        extra=values,
    )


@dataclass(frozen=True)
class AdapterFiles:
    """How a training run writes what it trains: an adapter folder in each of its checkpoints.

    `base` is the path or id of the weights below, `layout` the names they are stored under.
    """

    model: ModelConfig
    lora: LoraConfig
    base: str
    layout: str

    def write(self, folder: Path, adapter: Adapter) -> None:
        """Writes `adapter`, factors of this run, into a folder."""
        write_adapter(folder, adapter, self.model, layout=self.layout, base_model=self.base)


def write_adapter(
    folder: str | os.PathLike[str],
    adapter: Adapter,
    config: ModelConfig,
    *,
    layout: str = "llada",
    base_model: str | None = None,
) -> None:
    """Writes an adapter as `peft.PeftModel.from_pretrained` reads it onto a model of `layout`.

    Raises:
        UserError: q, k and v of a sequential block, which are stored as one, differ in A.
    """
    chosen = find_layout(layout)
    chosen.write_config(config)  # refuses what the layout cannot express
    tensors: dict[str, np.ndarray] = {}
    for stored in chosen.tensors(config):
        modules = [entry.path[:-1] for entry, _ in stored.parts if is_kernel(entry)]
        if not any(module in adapter.factors for module in modules):
            continue
        name, layer = stored.name.removesuffix(".weight"), stored.parts[0][1]
        if not all(module in adapter.factors for module in modules):
            raise UserError(f"{name} is one layer: adapt q, k and v together or none of them")
        a = adapter.factors[modules[0]][0][layer]
        if any(not np.array_equal(adapter.factors[m][0][layer], a) for m in modules):
            raise UserError(f"{name} is one layer, but its q, k and v differ in A")
        b = np.concatenate([adapter.factors[module][1][layer] for module in modules])
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored_tensors = [Tensor(n, a.dtype, a.shape, lambda a=a: [a]) for n, a in tensors.items()]
    with DurableFiles() as files, files.create(folder / WEIGHTS) as append:
        append(header(stored_tensors))
        for array in tensors.values():
            append(array_bytes(array))
    about = {
        **adapter.extra,
        "base_model_name_or_path": base_model or adapter.extra.get("base_model_name_or_path"),
        "peft_type": "LORA",
        "task_type": adapter.extra.get("task_type"),
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha,
        "use_rslora": adapter.use_rslora,
        "lora_dropout": adapter.lora_dropout,
        "bias": "none",
        "target_modules": _targets(tensors, chosen),
        "inference_mode": True,
    }
    write_json(folder / CONFIG, about)


def _read_config(folder: Path) -> dict[str, Any]:
    values = read_config_json(folder / CONFIG)
    for key, allowed in _PLAIN.items():
        if values.get(key) not in allowed:
            raise UserError(
                f"{folder / CONFIG}: {key}={values.get(key)!r} is not supported: "
                f"expected {' or '.join(repr(value) for value in allowed)}"
            )
    for key, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
        value: Any = values.get(key)
        if type(value) not in kinds or value <= 0:
            raise UserError(f"{folder / CONFIG}: {key}={value!r}: expected a number above 0")
    return values


def _pairs(file: Path, tensors: Mapping[str, Stored]) -> dict[str, tuple[Stored, Stored]]:
    """(A, B) by the name of the layer they belong to."""
    sides: dict[str, dict[str, Stored]] = {}
    for full, stored in tensors.items():
        name = full.removeprefix(_PREFIX).replace(".default.weight", ".weight")
        module, dot, side = name.rpartition(".lora_")
        if not dot or side not in ("A.weight", "B.weight"):
            raise UserError(f"{file}: {full} is not a factor of a linear layer (lora_A, lora_B)")
        # Adapters of a model without head lack the outer name.
        module = module if module.startswith("model.") or module == "lm_head" else f"model.{module}"
        sides.setdefault(module, {})[side[0]] = stored
    if not sides:
        raise UserError(f"{file}: holds no factors")
    if single := sorted(name for name, pair in sides.items() if len(pair) < 2):
        raise UserError(f"{file}: only one factor of {_some(single)}")
    heads = [layout.head.removesuffix(".weight") for layout in LAYOUTS.values()]
    if found := [name for name in heads if name in sides]:
        raise UserError(
            f"{file}: adapts the output head {found[0]}, which is not supported: "
            "train it with exclude_modules=['transformer.ff_out', 'lm_head']"
        )
    return {name: (pair["A"], pair["B"]) for name, pair in sides.items()}


def _layout(pairs: Mapping[str, Any]) -> Layout:
    is_llada = next(iter(pairs)).startswith("model.transformer.")
    return LAYOUTS["llada" if is_llada else "llama"]


def _modules(
    config: ModelConfig, layout: Layout
) -> dict[str, list[tuple[Entry, int, tuple[int, int] | None]]]:
    """Which (entry, layer, rows of B) a layer of a model folder is made of."""
    layout.write_config(config)
    found: dict[str, list[tuple[Entry, int, tuple[int, int] | None]]] = {}
    parts = layout.parts(config)
    for entry in filter(is_kernel, llada_table(config)):
        for layer in range(config.n_layers):
            part = parts[entry.path, layer]
            name = part.name.removesuffix(".weight")
            found.setdefault(name, []).append((entry, layer, part.rows))
    return found


def _stacked(
    file: Path,
    config: ModelConfig,
    module: Module,
    layers: Mapping[int, tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    if missing := [str(n) for n in range(config.n_layers) if n not in layers]:
        raise UserError(f"{file}: {module[-1]} is not adapted in layers {', '.join(missing)}")
    pairs = [layers[n] for n in range(config.n_layers)]
    return np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])


def _targets(tensors: Mapping[str, Any], layout: Layout) -> list[str] | str:
    names = sorted({name.split(".")[-3] for name in tensors})
    if layout.head.split(".")[-2] not in names:
        return names
    # A plain `ff_out` would also mean the head.
    return rf".*\.(?:blocks\.\d+|block_groups\.\d+\.\d+)\.(?:{'|'.join(names)})"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
