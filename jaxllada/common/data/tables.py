"""Opens what a source holds: one table for each split, read by `datasets` where it can be.

`datasets` is imported only when a source has to be opened, since that takes a second.
"""

import contextlib
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxllada.common.data import pystdlib, pystdlib_pairs
from jaxllada.common.data.data_files import by_split
from jaxllada.common.data.grammar import SourceSpec
from jaxllada.common.data.json_lines import JsonRows, can_read
from jaxllada.common.errors import UserError

Origin = Literal["pystdlib", "saved", "files", "hub"]
"""The interpreter's own text, a folder of save_to_disk, data files, or a name on the Hub."""
PYSTDLIB = ("pystdlib", "pystdlib-pairs")


def open_tables(
    spec: SourceSpec, kind: Origin, path: Path, files: Sequence[Path], *, streaming: bool
) -> Mapping[str, Any]:
    """Returns the tables by split: lists, `JsonRows`, datasets, or streams where asked for.

    Raises UserError where the source cannot be read or reached.
    """
    if kind == "pystdlib":
        return _own_text(spec.path)
    options: dict[str, Any] = dict(spec.options)
    try:
        if kind == "files":
            loaded = _from_files(spec, path, files, streaming)
        else:
            loaded = _from_disk(path, streaming) if kind == "saved" else _from_hub(spec, streaming)
    except UserError:
        raise
    except Exception as error:  # every reader raises its own kinds
        if kind == "files" and not streaming and not options and can_read(list(files)):
            # No table can be made of them: a broken line, or columns that change their type.
            read = {
                split: JsonRows([Path(file) for file in paths])
                for split, paths in by_split(files, path, spec.path)[1].items()
            }
            if any(rows.column_names for rows in read.values()):
                return read
        cause = error if isinstance(error, ConnectionError) else error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        where = "could not be read"
        if kind == "hub":
            where = "is no local file or folder, and could not be read from the Hub"
        raise UserError(f"dataset_args: {spec.path!r} {where}: {reason}") from error
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _own_text(name: str) -> dict[str, list[dict[str, str]]]:
    splits = ("train", "test")
    if name == "pystdlib":
        return {split: [{"text": d.text} for d in pystdlib.documents(split)] for split in splits}
    return {
        split: [
            {"prompt": pair.prompt, "response": pair.response}
            for pair in pystdlib_pairs.pairs(split)
        ]
        for split in splits
    }


def _from_disk(path: Path, streaming: bool) -> Any:
    import datasets

    loaded: Any = datasets.load_from_disk(str(path))
    if not streaming:
        return loaded
    if isinstance(loaded, dict):
        return {name: table.to_iterable_dataset() for name, table in loaded.items()}
    return loaded.to_iterable_dataset()


def _from_files(spec: SourceSpec, path: Path, files: Sequence[Path], streaming: bool) -> Any:
    import datasets

    builder, splits = by_split(files, path, spec.path)
    options: dict[str, Any] = dict(spec.options)
    if builder == "text":
        options = {"sample_by": "document"} | options
    if any(".tsv" in file.name for file in files):
        options = {"sep": "\t"} | options
    # What it has to say of a broken line comes by file and line from here.
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
    return datasets.load_dataset(builder, data_files=splits, streaming=streaming, **options)


def _from_hub(spec: SourceSpec, streaming: bool) -> Any:
    import datasets

    options: dict[str, Any] = dict(spec.options)
    with offline_where_unreachable():
        return datasets.load_dataset(spec.path, streaming=streaming, **options)


@contextlib.contextmanager
def offline_where_unreachable() -> Iterator[None]:
    """Uses only what is cached where the Hub's name cannot be resolved, instead of retrying.

    Behind a proxy names need not resolve, so nothing is concluded there.
    """
    from huggingface_hub import constants

    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname or ""
    unreachable = False
    if not (constants.HF_HUB_OFFLINE or urllib.request.getproxies()):
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            unreachable = True
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or unreachable
    try:
        yield
    except Exception as error:
        if unreachable:
            raise ConnectionError(f"{host} cannot be reached, and it is not cached") from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = before
