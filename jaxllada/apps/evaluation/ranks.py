"""Which part of an evaluation a process answers, from `--part` or from what started the process.

Parts share nothing but the output folder: no process talks to another, so ranks of torchrun, tasks
of srun, and a shell loop over GPUs or machines all do.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice

TORCHRUN = ("RANK", "WORLD_SIZE")
MANAGERS = (
    TORCHRUN,
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
"""Variables with the number of a process and the count of all, by what starts processes."""


class Part(NamedTuple):
    """Part `index` of `count`, from 0."""

    index: int = 0
    count: int = 1
    is_together: bool = False
    """Whether all parts were started at once; part 0 then waits for the others and scores."""

    @property
    def is_whole(self) -> bool:
        """Whether this process answers everything."""
        return self.count == 1

    @property
    def scores(self) -> bool:
        """Whether this process has the results in the end; the others only answer."""
        return self.is_whole or (self.is_together and self.index == 0)

    def owns(self, number: int) -> bool:
        """Whether it answers group `number`; neighbours, alike in length, go to different parts."""
        return number % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def part_of(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """The part that `--part` names: `i/n`, `auto`, or nothing.

    Nothing means everything, except under torchrun, whose ranks are parts that belong together.
    `auto` asks srun and mpirun as well; their variables alone are no proof, since a shell inside an
    allocation has them too. Raises `UserError`.
    """
    ranked = all(name in environment for name in TORCHRUN)
    if text == "auto" or (not text and ranked):
        return _started(environment)
    if not text:
        return Part()
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"part={text}: expected i/n, i from 0 to n-1, or auto (the number of this process in"
            " torchrun, srun or mpirun)"
        )
    if ranked and int(environment[TORCHRUN[1]]) > 1:
        raise UserError(
            f"part={text}: torchrun numbers this process RANK={environment[TORCHRUN[0]]} of"
            f" WORLD_SIZE={environment[TORCHRUN[1]]}; leave part out"
        )
    return Part(int(index), int(count))


def tell_of_idle(part: Part, devices: int, how: str) -> None:
    """Says that a whole evaluation runs on one of several devices, and `how` to use the others."""
    if part.is_whole and devices > 1:
        notice(f"this process uses one of {devices} devices; {how} uses all")


def _started(environment: Mapping[str, str]) -> Part:
    for names in MANAGERS:
        if not all(name in environment for name in names):
            continue
        values = [environment[name] for name in names]
        if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
            told = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise UserError(f"{told}: expected whole numbers, the first below the second")
        return Part(int(values[0]), int(values[1]), is_together=True)
    raise UserError(
        "part=auto: this process was started by none of torchrun, srun and mpirun; give i/n"
    )
