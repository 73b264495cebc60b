"""A window of steps recorded by `jax.profiler`, to be opened with XProf or TensorBoard."""

from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Records steps `first` to `end` - 1 into `folder`; without a window it does nothing."""

    def __init__(self, window: tuple[int, int] | None, folder: Path):
        self._window, self._folder = window, folder
        self._is_on = False

    def before(self, step: int, state: Any) -> None:
        """Call before step number `step`; waits for `state` where the window ends."""
        if self._window is None:
            return
        if self._is_on and step >= self._window[1]:
            self.stop(state)
        elif step == self._window[0]:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True

    def stop(self, state: Any) -> None:
        """Writes the trace, if one is being recorded."""
        if self._is_on:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._is_on = False
