"""The index of lm_eval's tasks, without parsing its 14,000 definitions whole.

Only names, groups, tags and includes matter until a task is made, and these are nearly always on
one line of their own. A file that says them in another way is parsed as lm_eval does it.
"""

import contextlib
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskManager

KEYS = "task|group|tag|class|include"
LINE = re.compile(rf"^([\"']?)({KEYS})\1[ \t]*:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
PLAIN = re.compile(r"[A-Za-z_/.][\w/.+-]*(?:(?:::| |:)[\w/.+-]+)*")
NOTHING = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "inf", "nan"}


def task_manager(folders: Sequence[Path]) -> "TaskManager":
    """lm_eval's manager of all its tasks and those in `folders`.

    Raises `UserError` where lm_eval is not installed.
    """
    try:
        from lm_eval import tasks
    except ImportError:
        raise UserError(
            "tasks need the evaluation harness: pip install 'jaxllada[eval]' (lm-eval)"
        ) from None
    from lm_eval.tasks._index import Kind

    manager = tasks.TaskManager(include_defaults=False)
    index = manager._index
    for folder in (Path(tasks.__file__).parent, *folders):
        index.update(index_of(folder))
    manager._all_tasks = sorted(index)
    for name, kinds in (
        ("_all_subtasks", (Kind.TASK, Kind.PY_TASK)),
        ("_all_groups", (Kind.GROUP,)),
        ("_all_tags", (Kind.TAG,)),
    ):
        setattr(manager, name, sorted(key for key in index if index[key].kind in kinds))
    return manager


def index_of(folder: Path) -> dict[str, Any]:
    """{name: Entry} of the definitions below a folder, as `TaskIndex.build` finds them."""
    from lm_eval.tasks._index import TaskIndex

    index: dict[str, Any] = {}
    for path in TaskIndex._iter_yaml_files(folder):
        try:
            TaskIndex.process_cfg(_head(path), path, index)
        except Exception:  # as lm_eval does: what cannot be read is no task
            continue
    for entry in index.values():
        entry.cfg = None
    return index


def entries_of(path: Path) -> tuple[str, dict[str, Any]]:
    """The task or group that a file defines, and {name: Entry}; a group also knows files beside it.

    Raises `UserError` where it defines none.
    """
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    path = path.resolve()
    entries: dict[str, Any] = {}
    try:
        said = load_yaml(path, resolve_func=False)
        TaskIndex.process_cfg(said, path, entries)
    except Exception as error:  # of the YAML parser, or of lm_eval about its content
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tasks: {path} defines no task or group: {reason}") from error
    if "group" not in said:
        return said["task"], entries
    for file in sorted(path.parent.glob("*.y*ml")):
        with contextlib.suppress(Exception):  # the group may not need it
            if file != path:
                TaskIndex.process_cfg(load_yaml(file, resolve_func=False), file, entries)
    return said["group"], entries


def _head(path: Path) -> dict[str, Any]:
    """What a definition says of `KEYS`, includes followed."""
    head = dict(_said(path))
    found: dict[str, Any] = {}
    if "include" in head:
        included = _head(path.parent / head.pop("include"))
        found = {key: value for key, value in included.items() if key != "task_list"}
    return found | head


@functools.cache
def _said(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    head: dict[str, Any] = {}
    for _, key, value in LINE.findall(path.read_text(encoding="utf-8")):
        value = re.sub(r"[ \t]+#.*$", "", value)
        quoted = re.fullmatch(r"\"([^\"\\]*)\"|'([^']*)'", value)
        if quoted:
            head[key] = quoted[1] if quoted[1] is not None else quoted[2]
        elif PLAIN.fullmatch(value) and value.lower() not in NOTHING:
            head[key] = value
        else:
            return load_yaml(path, resolve_func=False, recursive=True)
    return head
