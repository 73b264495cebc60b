"""The configuration of a model folder, whichever family its config.json belongs to."""

import dataclasses
import os
from pathlib import Path

from jaxllada.common.config.family import family_of, read_config_json
from jaxllada.common.config.llama import from_llama
from jaxllada.common.config.mask_id import find_mask_id
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.qwen2 import from_qwen2
from jaxllada.common.errors import UserError


def read_config(path: str | os.PathLike[str], *, mask_token_id: int | None = None) -> ModelConfig:
    """Reads `config.json` of any layout from a folder, or the file itself.

    Where the file of a Llama-like model has no `mask_token_id`, its tokenizer files are asked; the
    argument is for folders where nobody tells it.

    Raises:
        UserError: no such file, another family, values that cannot be run, mask ids that disagree.
    """
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    values = read_config_json(file)
    try:
        layout = family_of(values).layout
        if layout == "qwen2":
            if mask_token_id is not None:
                raise UserError(f"mask_token_id={mask_token_id}: qwen2 has no mask token")
            return from_qwen2(values)
        if layout == "llama":
            config = from_llama(values)
        else:
            config = ModelConfig.from_dict(values)
            if mask_token_id in (None, config.mask_token_id):
                return config
        found = find_mask_id(file.parent, config.mask_token_id, mask_token_id)
        return dataclasses.replace(config, mask_token_id=found)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
