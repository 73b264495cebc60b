"""A window of steps that is recorded; a backend says how recording starts and stops."""

from collections.abc import Callable
from pathlib import Path


class Profiler:
    """Records steps `first` to `end` - 1 into `folder`; without a window it does nothing.

    `stop` has to wait for the steps under way.
    """

    def __init__(
        self,
        window: tuple[int, int] | None,
        folder: Path,
        start: Callable[[Path], None],
        stop: Callable[[], None],
    ):
        self._window, self._folder = window, folder
        self._start, self._stop = start, stop
        self._is_on = False

    def before(self, step: int) -> None:
        """Call before step number `step`."""
        if self._window is None:
            return
        if self._is_on and step >= self._window[1]:
            self.stop()
        elif step == self._window[0]:
            self._start(self._folder)
            self._is_on = True

    def stop(self) -> None:
        """Writes the trace, if one is being recorded."""
        if self._is_on:
            self._stop()
            self._is_on = False
