"""What a process that launch/npu_*.sh started has to tell the script, and those started after it.

torchrun starts processes that failed again and does not know why they failed. A run that is over
for good leaves its exit code in a file of the machine, named by the script.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from jaxllada.common.errors import UserError

EXIT_FILE = "JAXLLADA_EXIT_FILE"
"""Where a process that ends for good leaves its exit code for the script."""


class Launch:
    """What processes that torchrun starts again have to know of those before them.

    `code` is the exit code of a run that is over; `has_begun` tells whether it made steps.
    """

    def __init__(self, file: str | None = None):
        self._file = Path(file) if file else None

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process that the script started."""
        return self._file is not None and os.environ.get("WORLD_SIZE") == "1"

    @property
    def code(self) -> int | None:
        text = self._file.read_text() if self._file is not None and self._file.is_file() else ""
        return int(text) if text else None

    def end(self, code: int) -> None:
        if self._file is not None:
            self._file.write_text(str(code))

    @property
    def has_begun(self) -> bool:
        return self._file is not None and self._marker(self._file).exists()

    def begin(self) -> None:
        if self._file is not None:
            self._marker(self._file).touch()

    @staticmethod
    def _marker(file: Path) -> Path:
        return file.with_name(f"{file.name}.begun")


def launched(work: Callable[[Launch], int], *, ends_together: bool) -> int:
    """Does the work of one process and returns its exit code; wrong input is not tried again.

    `ends_together`: whether the end of one process is that of all, as in training. Where each has
    a part of its own, one that is done must not stop the others from being started again.
    """
    launch = Launch(os.environ.get(EXIT_FILE))
    if launch.code is not None:
        return launch.code
    try:
        code = work(launch)
    except UserError as error:
        launch.end(2)
        if not launch.is_alone:
            raise
        # torchrun would bury the message under its own traceback; the script knows the code.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 0
    if ends_together:
        launch.end(code)
    return code
