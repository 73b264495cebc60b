"""What the user sees while a run goes on: a bar on a terminal, lines elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm

from jaxllada.common.notices import notice


class Progress:
    """Shows steps, loss, speed and the time left on stderr; quiet unless `is_main`."""

    def __init__(self, total: int, start: int = 0, *, is_main: bool = True):
        self.total, self.is_main = total, is_main
        self._last = (start, time.monotonic())
        self._lines, self._pace = 0, 0.0
        shows_bar = is_main and sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05)
            if shows_bar
            else None
        )

    def step(self, number: int) -> None:
        """Moves the bar to `number` finished steps (back, after a rollback)."""
        if self._bar is not None:
            self._bar.update(number - self._bar.n)

    def line(self, number: int, metrics: dict[str, Any]) -> None:
        """Shows the numbers of one line of the log."""
        speed = f"{metrics['tokens_per_second']:,.0f} tok/s"
        shown = f"loss {metrics['loss']:.3f}  {speed}  lr {metrics['learning_rate']:.2e}"
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif self.is_main:
            notice(f"step {number}/{self.total}  {shown}  left {self._left(number)}")

    def _left(self, number: int) -> str:
        """Time left at the recent pace; what came before the first line was mostly compiling."""
        now = time.monotonic()
        pace = (now - self._last[1]) / max(1, number - self._last[0])
        self._last, self._lines = (number, now), self._lines + 1
        self._pace = pace if self._lines <= 2 else 0.8 * self._pace + 0.2 * pace
        return tqdm.format_interval(max(0, int(self._pace * (self.total - number))))

    def tell(self, message: str) -> None:
        """Prints a line about the run."""
        if self.is_main:
            notice(message)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
