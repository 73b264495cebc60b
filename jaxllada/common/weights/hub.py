"""Model folders named by a path, or by an id of the Hugging Face Hub and then downloaded.

Only configuration, tokenizer, card and safetensors are asked for: no code and no pickles.
"""

import os
import re
from pathlib import Path

from jaxllada.common.errors import UserError

WANTED = (
    *("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"),
    "README.md",
)
UNWANTED = ("*.py", "*.bin", "*.pt", "*.pth", "*.pkl", "*.gguf", "*/*")
# owner/name, optionally @revision.
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")


def is_hub_id(name: str) -> bool:
    """Whether `name` can only be an id of the Hub: its first part is no folder here."""
    return _ID.fullmatch(name) is not None and not Path(name.split("/")[0]).exists()


def local_folder(path_or_id: str | os.PathLike[str], *, weights: bool = True) -> Path:
    """Returns a path that exists, or the folder in the cache that a Hub id was downloaded to.

    `owner/name@revision` asks for a branch, tag or commit. What the cache holds is not downloaded
    again; without `weights` only the small files are. HF_HOME, HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE mean what they do elsewhere.

    Raises:
        UserError: neither a path nor an id, or the Hub cannot be reached or has no such model.
    """
    path = Path(path_or_id)
    if path.exists():
        return path
    name = os.fspath(path_or_id)
    if not is_hub_id(name):
        raise UserError(f"{name}: no such folder, and not an id of the Hub such as owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{name}: no such folder; to download it, pip install huggingface_hub"
        ) from None
    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=list(WANTED),
            ignore_patterns=[*UNWANTED, *([] if weights else ["*.safetensors"])],
        )
    # The client raises errors of the network library it happens to use.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{name}: no such folder, and it cannot be downloaded from the Hub "
            f"({type(error).__name__}: {reason}); give the path of a folder"
        ) from error
    return Path(folder)
