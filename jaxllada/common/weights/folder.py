"""Everything of an exported model folder beside its weights: config, tokenizer, code, card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.chat import TURN_END
from jaxllada.common.config.family import LLADA, family_of
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.qwen2 import CausalConfig
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_atomically
from jaxllada.common.notices import notice
from jaxllada.common.weights.card import model_card
from jaxllada.common.weights.index import WeightFolder, write_json
from jaxllada.common.weights.layouts import Layout, find_layout, own_layout
from jaxllada.common.weights.side_files import copy_side_files

REMOTE = Path(__file__).parents[2] / "exported"
"""The code that travels with exported weights. Nothing here imports it: it needs transformers."""

_CONFIG_CLASS = "configuration_llada.LLaDAConfig"
_MODEL_CLASS = "modeling_llada.LLaDAModelLM"
AUTO_MAP = {
    "AutoConfig": _CONFIG_CLASS,
    "AutoModel": _MODEL_CLASS,
    "AutoModelForCausalLM": _MODEL_CLASS,
    "AutoModelForMaskedLM": _MODEL_CLASS,
}
_OURS = frozenset(AUTO_MAP.items())
_GENERATE = {"custom_generate/generate.py": "generation_llada.py"}
_CODE = {
    "llada": {
        **{f"{name}_llada.py": f"{name}_llada.py" for name in ("configuration", "modeling")},
        "generation_llada.py": "generation_llada.py",
        **_GENERATE,
    },
    "llama": _GENERATE,
}


def complete_folder(
    folder: Path,
    *,
    config: ModelConfig,
    layout: Layout | str | None = None,
    source_folder: Path | None = None,
    dtype: np.dtype | None = None,
    recipe: Mapping[str, Any] | None = None,
    name: str = "",
) -> None:
    """Writes into a folder that holds safetensors all that makes it a model for transformers.

    Args:
        folder: where the weights are; files of the same names are replaced.
        config: the model; its unknown fields are written as they were read.
        layout: that of the weights.
        source_folder: where tokenizer, chat template and generation_config.json are copied from,
            byte for byte; for a training run also its settings, which go into the card.
        dtype: what to say in configs that name a stored type; None leaves it.
        recipe: settings for the card; they stand before those of a run.
        name: title of the card; the name of the folder by default.

    Raises:
        UserError: the layout cannot express the model, or a file of the source is damaged.
    """
    layout = layout or own_layout(config)
    layout = find_layout(layout) if isinstance(layout, str) else layout
    values = config_json(config, layout, dtype)
    if source_folder is not None:
        copy_side_files(source_folder, folder)
        read_by_both_majors(folder / "tokenizer_config.json")
    if not (folder / "generation_config.json").is_file():
        write_json(folder / "generation_config.json", _generation_config(folder, config))
    _copy_code(folder, layout, values, source_folder)
    name = name or folder.name.removeprefix(".").removesuffix(".partial")
    text = model_card(
        name,
        config=config,
        layout=layout.name,
        dtypes=_stored_types(folder),
        source_folder=source_folder,
        recipe=recipe,
        has_tokenizer=(folder / "tokenizer.json").is_file(),
        has_template=_has_template(folder),
        has_code=family_of(values).name in ("llada", "llama", "qwen2"),
    )
    write_atomically(folder / "README.md", text.encode())
    # Last: without it no loader accepts the folder.
    write_json(folder / "config.json", values)


def config_json(
    config: ModelConfig, layout: Layout, dtype: np.dtype | None = None
) -> dict[str, Any]:
    """Returns the config.json of an exported folder: that of the model, and where its code is."""
    values = layout.write_config(config)
    if dtype is not None:
        for key in ("torch_dtype", "dtype"):
            if isinstance(values.get(key), str):
                values[key] = dtype.name
    if family_of(values) is not LLADA:
        return values
    values = {"model_type": "llada", **values}  # transformers needs it, the rest of us does not
    found = values.get("auto_map")
    is_ours = isinstance(found, Mapping) and "AutoModel" in found and set(found.items()) <= _OURS
    if not is_ours:
        if found:
            notice(f"auto_map: replaced {found} by the modeling file of this project")
        values["auto_map"] = dict(AUTO_MAP)
    return values


def read_by_both_majors(file: Path) -> bool:
    """Rewrites a tokenizer_config.json of transformers 5 so that 4.57 reads it too.

    Version 5 names a class that 4.57 does not know, and lists further special tokens under a key
    that 4.57 takes for a mapping. Returns whether it was rewritten; other files stay as they are.
    """
    values = _json(file)
    if values.get("tokenizer_class") != "TokenizersBackend":
        return False
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    write_atomically(file, json.dumps(values, indent=2, ensure_ascii=False).encode())
    notice("tokenizer_class: TokenizersBackend became PreTrainedTokenizerFast for transformers 4")
    return True


def _generation_config(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """The special ids; `eot_token_id` is what `generate` holds back with the end of the text."""
    ids = _token_ids(folder / "tokenizer.json")
    declared = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    bos = declared.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    if isinstance(config, CausalConfig):
        ends = [config.eos_token_id, *({ids.get(TURN_END)} - {None, config.eos_token_id})]
        return {
            "bos_token_id": config.start_id,
            "eos_token_id": ends[0] if len(ends) == 1 else ends,
            "pad_token_id": config.pad_token_id,
        }
    values = {
        "bos_token_id": ids.get(bos) if isinstance(bos, str) else None,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "eot_token_id": ids.get(TURN_END),
    }
    return {key: value for key, value in values.items() if value is not None}


def _stored_types(folder: Path) -> list[str]:
    if not any(folder.glob("*.safetensors")):
        return []
    files = WeightFolder(folder)
    return sorted({files.dtype(name).name for name in files.names})


def _has_template(folder: Path) -> bool:
    is_file = any(
        (folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")
    )
    return is_file or bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def _token_ids(file: Path) -> dict[str, int]:
    """Ids of added tokens by their text: special tokens are among them."""
    listed = _json(file).get("added_tokens") or []
    return {str(token["content"]): int(token["id"]) for token in listed}


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from None
    return values if isinstance(values, dict) else {}


def _copy_code(
    folder: Path, layout: Layout, values: Mapping[str, Any], source_folder: Path | None
) -> None:
    for name, origin in _CODE.get(layout.name, {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(REMOTE / origin, folder / name)
    if family_of(values).layout != "llama" or not isinstance(values.get("auto_map"), Mapping):
        return
    # Another family's own classes: their files come along unread, where the source has them.
    modules = {
        str(value).rpartition("--")[2].split(".")[0] for value in values["auto_map"].values()
    }
    for name in sorted(f"{module}.py" for module in modules):
        if source_folder is not None and (source_folder / name).is_file():
            shutil.copyfile(source_folder / name, folder / name)
        else:
            notice(f"auto_map names {name}, which the source does not have")
