"""Lets this package take turns with another.

    jaxllada bench --beside "python -m npu_backend.commands.beside --device cpu"

Options are `device` and `ops`, as everywhere.
"""

import sys
from collections.abc import Sequence

from jaxllada.apps import beside
from jaxllada.apps.bench_backend import Backend
from npu_backend.commands.opening import DeviceKeys


def make(arguments: Sequence[str]) -> Backend:
    """The backend of this package on the device that the arguments name."""
    from jaxllada.common.config.load import load_config

    keys = load_config(DeviceKeys, arguments, prog="python -m npu_backend.commands.beside")
    from npu_backend.commands.bench_cases import Bench

    return Bench(keys.device, keys.ops)


if __name__ == "__main__":
    sys.exit(beside.main(make, sys.argv[1:]))
