"""Reads and writes the folder of a tokenizer in the layout of Hugging Face."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxllada.common import chat
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_atomically


class TokenizerFiles(NamedTuple):
    """What a folder holds.

    `core` is a `tokenizers.Tokenizer`; `special` maps bos_token, eos_token and their like to texts;
    `mask_id` is what a config.json beside them says.
    """

    core: Any
    special: dict[str, str]
    template: str
    mask_id: int | None = None


def read_tokenizer(path: str | os.PathLike[str]) -> TokenizerFiles:
    """Reads tokenizer.json and the small files beside it; UserError where it is missing or broken.

    A folder without a chat template has LLaDA's.
    """
    import tokenizers

    folder = Path(path)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"tokenizer={str(path)!r}: no tokenizer.json there")
    try:
        core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{folder / 'tokenizer.json'}: {error}") from None
    config = _read_json(folder / "tokenizer_config.json")
    special = _special_texts(_read_json(folder / "special_tokens_map.json"))
    special |= _special_texts(config)
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default", next(iter(named.values()), None))
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    mask_id = _read_json(folder / "config.json").get("mask_token_id")
    return TokenizerFiles(core, special, template or chat.TEMPLATE, mask_id)


def write_tokenizer(folder: str | os.PathLike[str], files: TokenizerFiles) -> None:
    """Writes the folder in the layout of the release; transformers reads it too."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
        "tokenizer_class": "PreTrainedTokenizerFast",
        **files.special,
    }
    texts = {
        "tokenizer.json": files.core.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
        "special_tokens_map.json": json.dumps(files.special, indent=2, ensure_ascii=False),
        "chat_template.jinja": files.template,
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _special_texts(config: dict[str, Any]) -> dict[str, str]:
    """Takes `eos_token` and its like from a config, where they are a text or an object."""
    texts = {}
    for key, value in config.items():
        if key.endswith("_token") and not key.startswith("add_"):
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                texts[key] = value
    return texts
