"""Signs of life of the processes that share an evaluation, as small files in the output folder.

Every process renews `parts/INDEX-of-COUNT.json`. The one that scores waits until all answers are
there, and says which process failed or fell silent. That all is answered is read from the answers
themselves: files that an earlier run left behind mislead nobody.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxllada.apps.evaluation.ranks import Part
from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice, warn

BEAT = 5.0
"""Seconds between two signs of life."""
PATIENCE = 600.0
"""Seconds of silence after which a process counts as lost; the first sign comes before the model is
read, and a shared folder may show a new file only after a minute."""
SETTLE = 90.0
"""Seconds until the last answers of a process that is done have to be seen in a shared folder."""
TELL = 60.0
"""Seconds between two lines about what is missing."""


class PartFailed(RuntimeError):
    """Another process of this evaluation ended with an error or fell silent."""


class Presence:
    """Says that this process lives, from a thread of its own, as long as the block lasts.

    Leaving the block by an error leaves its message in the file; a killed process leaves its last
    sign, which is not renewed.
    """

    def __init__(self, output: Path, part: Part, *, beat: float = BEAT):
        self.part = part
        self._folder = output / "parts"
        self._beat = beat
        self._over = threading.Event()
        self._state: dict[str, Any] = {
            "part": str(part),
            "host": platform.node(),
            "process": os.getpid(),
            "start": uuid.uuid4().hex,
            "state": "answering",
            "beat": 0,
        }

    def __enter__(self) -> "Presence":
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.before = _states(self._folder, self.part.count)
            self._write()
        except OSError as error:
            raise UserError(f"output={self._folder.parent}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._renew, name="presence", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._state["state"] = "failed" if error else "done"
        if error:
            name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self._state["error"] = f"{name}{error}"
        self._tell()

    def wait(
        self,
        missing: Callable[[], Mapping[int, int]],
        *,
        poll: float = 2.0,
        patience: float = PATIENCE,
        settle: float = SETTLE,
    ) -> bool:
        """Waits until `missing`, the number of open answers by part, is empty; then returns True.

        Returns False, with a warning, where the parts that owe answers are done without them: their
        prompts were others, as a task may draw its own, and this process has to answer the rest.

        Raises:
            PartFailed: a part that owes answers has failed, or gave no sign for `patience` seconds.
        """
        seen = dict(self.before)
        heard = dict.fromkeys(range(self.part.count), time.monotonic())
        told = -TELL
        while open_answers := missing():
            now = time.monotonic()
            for index, state in _states(self._folder, self.part.count).items():
                if state != seen.get(index):
                    seen[index], heard[index] = state, now
            spent = 0
            for index in sorted(open_answers):
                state = seen.get(index, {})
                is_new = state != self.before.get(index)
                if is_new and state.get("state") == "done":
                    spent += now - heard[index] > settle
                    continue
                if is_new and state.get("state") == "failed":
                    raise PartFailed(f"{self._named(index, state)} failed: {state.get('error')}")
                if now - heard[index] > patience:
                    raise PartFailed(
                        f"{self._named(index, state)} gave no sign of life for"
                        f" {now - heard[index]:.0f} s and owes {open_answers[index]} answers"
                    )
            if spent == len(open_answers):
                warn(
                    f"{sum(open_answers.values())} answers are missing though their parts are done:"
                    " a task makes other prompts in every process; they are answered here"
                )
                return False
            if now - told > TELL:
                told = now
                owed = ", ".join(f"{n} of part {i}" for i, n in sorted(open_answers.items()))
                notice(f"waiting for {sum(open_answers.values())} answers: {owed}")
            time.sleep(poll)
        return True

    def _named(self, index: int, state: Mapping[str, Any]) -> str:
        name = f"part {index}/{self.part.count}"
        if not state:
            where = self._folder.parent
            return f"{name} (no sign of it in {where}; do all machines see that folder?)"
        return f"{name} (process {state.get('process')} on {state.get('host')})"

    def _renew(self) -> None:
        while not self._over.wait(self._beat):
            self._state["beat"] += 1
            self._tell()

    def _tell(self) -> None:
        try:
            self._write()
        except OSError as error:  # a full disk stops whoever writes answers, not this
            warn(f"{self._path}: {error.strerror}")

    @property
    def _path(self) -> Path:
        return _path(self._folder, self.part.index, self.part.count)

    def _write(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{self._state['start']}.tmp")
        temporary.write_text(json.dumps(self._state), encoding="utf-8")
        temporary.replace(self._path)


def _path(folder: Path, index: int, count: int) -> Path:
    return folder / f"{index}-of-{count}.json"


def _states(folder: Path, count: int) -> dict[int, dict[str, Any]]:
    """What the parts last said, by number; those that said nothing are left out."""
    found = {}
    for index in range(count):
        try:
            found[index] = json.loads(_path(folder, index, count).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return found
