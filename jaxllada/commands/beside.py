"""Lets this package take turns with another: `bench --beside "python -m jaxllada.commands.beside"`.

On a GPU that both use, set XLA_PYTHON_CLIENT_PREALLOCATE=false.
"""

import sys
from collections.abc import Sequence

from jaxllada.apps import beside
from jaxllada.apps.bench_backend import Backend
from jaxllada.common.errors import UserError


def make(arguments: Sequence[str]) -> Backend:
    """The backend of this package; it has no options."""
    if arguments:
        raise UserError(f"unexpected argument '{arguments[0]}': jaxllada beside takes none")
    from jaxllada.commands.bench_cases import Bench

    return Bench()


if __name__ == "__main__":
    sys.exit(beside.main(make, sys.argv[1:]))
