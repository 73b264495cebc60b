"""NLTK's data for sentences, which IFEval's scoring needs, kept beside the data of tasks."""

import os
import sys
from pathlib import Path
from typing import Any

from jaxllada.common.errors import UserError

FOLDER, PACKAGE = "nltk_data", "punkt_tab"


def needs_words(task: Any) -> bool:
    """Whether the scoring of a task splits answers into sentences."""
    module = getattr(task.config.process_results, "__module__", None) or ""
    return ".ifeval" in module


def use_words(folder: Path) -> None:
    """NLTK looks into `folder/nltk_data` too, if there is such a folder."""
    words = folder / FOLDER
    if not words.is_dir():
        return
    known = os.environ.get("NLTK_DATA", "").split(os.pathsep)
    if str(words) not in known:
        os.environ["NLTK_DATA"] = os.pathsep.join([str(words), *filter(None, known)])
    nltk: Any = sys.modules.get("nltk")
    if nltk is not None and str(words) not in nltk.data.path:
        nltk.data.path.insert(0, str(words))


def check_words(task: Any, name: str, folder: Path) -> None:
    """Raises `UserError` where scoring would fail after all answers are there."""
    if not needs_words(task):
        return
    import nltk

    try:
        nltk.data.find(f"tokenizers/{PACKAGE}")
    except LookupError:
        raise UserError(
            f"tasks: {name}: its scoring needs {PACKAGE} of NLTK: `python -m nltk.downloader -d"
            f" {folder / FOLDER} {PACKAGE}` where there is a network, or eval --download"
        ) from None


def save_words(task: Any, name: str, folder: Path) -> None:
    """Fetches them into `folder/nltk_data` for a task that needs them; raises `UserError`."""
    if not needs_words(task) or (folder / FOLDER / "tokenizers" / PACKAGE).exists():
        return
    import nltk

    if not nltk.download(PACKAGE, download_dir=str(folder / FOLDER), quiet=True):
        raise UserError(f"tasks: {name}: {PACKAGE} of NLTK, for its scoring, could not be fetched")
