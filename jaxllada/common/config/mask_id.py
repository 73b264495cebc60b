"""The id of the mask token, which the files of a model folder tell in several places or not at all.

Order of the sources: config.json, the tokenizer's declared mask token, a token with a known name,
the user. All that are present have to agree. Only JSON is read, no tokenizer is built.
"""

import json
from pathlib import Path
from typing import Any

from jaxllada.common.errors import UserError
from jaxllada.common.vocabulary import MASK_NAMES


def find_mask_id(
    folder: Path, in_config: int | None = None, given: int | None = None
) -> int | None:
    """Returns the id the files of `folder` agree on, or None where nobody tells one.

    `in_config` is what config.json says, `given` what the user does.

    Raises:
        UserError: two sources disagree, or a file cannot be read.
    """
    found = {
        "config.json mask_token_id": in_config,
        **_in_tokenizer(folder),
        "mask_token_id as given": given,
    }
    present = {source: number for source, number in found.items() if number is not None}
    if len(set(present.values())) > 1:
        told = ", ".join(f"{source} = {number}" for source, number in present.items())
        raise UserError(f"{folder}: the mask ids disagree: {told}")
    return next(iter(present.values()), None)


def _in_tokenizer(folder: Path) -> dict[str, int | None]:
    config = _read(folder / "tokenizer_config.json")
    tokens = _read(folder / "tokenizer.json")
    ids = {
        **_vocabulary(tokens),
        **{t["content"]: int(n) for n, t in config.get("added_tokens_decoder", {}).items()},
        **{t["content"]: int(t["id"]) for t in tokens.get("added_tokens", [])},
        **_read(folder / "added_tokens.json"),
    }
    declared = config.get("mask_token") or _read(folder / "special_tokens_map.json").get(
        "mask_token"
    )
    if isinstance(declared, dict):
        declared = declared.get("content")
    if declared is not None and ids and declared not in ids:
        raise UserError(f"{folder}: mask_token={declared!r} is not in the vocabulary")
    named = next((name for name in MASK_NAMES if name in ids), None)
    return {
        "tokenizer_config.json mask_token": ids.get(declared) if declared else None,
        str(named): ids.get(named) if named else None,
    }


def _vocabulary(tokens: dict[str, Any]) -> dict[str, int]:
    vocabulary = tokens.get("model", {}).get("vocab", {})
    return vocabulary if isinstance(vocabulary, dict) else {}  # a list in Unigram models


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    return value if isinstance(value, dict) else {}
