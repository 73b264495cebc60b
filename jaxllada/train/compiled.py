"""Compiling with the time it takes, and keeping what was compiled on a local disk."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

Tell = Callable[[str], None]


def keep_compiled_programs(folder: str = "") -> None:
    """Turns on JAX's persistent compilation cache.

    `folder` empty: $JAXLLADA_CACHE/xla, else ~/.cache/jaxllada/xla. `none` leaves it off, and a
    cache that the environment (JAX_COMPILATION_CACHE_DIR) has chosen is left as it is.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder == "none" or (chosen and not folder):
        return
    home = os.environ.get("JAXLLADA_CACHE") or Path.home() / ".cache" / "jaxllada"
    path = Path(folder or Path(home) / "xla")
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


class Compiled:
    """A jitted function that says how long compiling took, once for every shape it meets.

    Batches with and without an attention mask, or padded to another length, are different shapes.
    """

    def __init__(self, jitted: Any, name: str, tell: Tell):
        self._jitted, self._name, self._tell = jitted, name, tell
        self._programs: dict[Any, Any] = {}
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        signature = (structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))
        if signature not in self._programs:
            begun = time.perf_counter()
            self._programs[signature] = self._jitted.lower(*arguments).compile()
            taken = time.perf_counter() - begun
            self.seconds += taken
            self._tell(f"compiled the {self._name} in {taken:.1f} s")
        return self._programs[signature](*arguments)
