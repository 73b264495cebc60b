"""Which versions of torch, torch_npu, CANN and the driver belong together on Ascend.

Read without importing any of them: on a machine with a mismatch the import is what fails.
Sources, as of August 2026: COMPATIBILITY of Ascend/pytorch (torch_npu and CANN), the release notes
of CANN 8.5.0 and 9.1.0 (CANN and driver). torch 2.13 is newer than both tables.
"""

import re
from typing import NamedTuple

Version = tuple[int, int, int, int, int]
TESTED = "2.13.0"
"""torch and torch_npu this package is tested with."""
TORCH_RANGE = ("2.7", "2.14")
"""First torch that is allowed, and the first that is not."""

# Wheel of torch_npu -> the CANN it is released for. A torch version has several wheels.
_CANN: dict[str, str] = {
    "2.12.0.post2": "9.1.1", "2.11.0.post2": "9.1.1", "2.10.0.post6": "9.1.1",
    "2.9.0.post8": "9.1.1", "2.7.1.post10": "9.1.1",
    "2.12.0": "9.1.0", "2.11.0": "9.1.0", "2.10.0.post4": "9.1.0", "2.9.0.post6": "9.1.0",
    "2.7.1.post8": "9.1.0",
    "2.10.0": "9.0.0", "2.9.0.post2": "9.0.0", "2.8.0.post4": "9.0.0", "2.7.1.post4": "9.0.0",
    "2.9.0": "8.5.0", "2.8.0.post2": "8.5.0", "2.7.1.post2": "8.5.0",
    "2.8.0": "8.3.RC1", "2.7.1": "8.3.RC1",
}  # fmt: skip
_PRESUMED = "9.1.0"
"""Lowest CANN for wheels newer than the table."""

# Lowest CANN of a line -> the driver (Ascend HDK) it still works with.
_DRIVERS: dict[str, str] = {"9.1": "25.2", "9.0": "25.0", "8.5": "25.0"}
EXPANDABLE_SEGMENTS = ("8.5.0", "25.5.0")
"""CANN and driver from which PYTORCH_NPU_ALLOC_CONF=expandable_segments:True works."""


class Requirement(NamedTuple):
    """A lowest version, and whether a published table says so."""

    version: str
    is_published: bool


def parse(text: str) -> Version:
    """Turns `9.1.0`, `8.3.RC1`, `25.0.rc1.1`, `2.7.1.post4` or `2.13.0+cpu` into what compares.

    A release candidate sorts before its release, a post-release after it. Raises ValueError for
    text without a leading number.
    """
    match = re.match(
        r"\D{0,2}(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:[.-]?(rc|beta|alpha|post|t)\.?(\d+))?",
        text.strip(),
        re.IGNORECASE,
    )
    if match is None:
        raise ValueError(f"not a version: {text!r}")
    major, minor, patch, kind, number = match.groups()
    stage = {None: 0, "post": 1, "t": 0}.get(kind.lower() if kind else None, -1)
    return int(major), int(minor or 0), int(patch or 0), stage, int(number or 0)


def release(text: str) -> tuple[int, int]:
    """Major and minor number."""
    return parse(text)[:2]


def supports_torch(torch: str) -> bool:
    """Whether a torch version lies in the range this package allows."""
    return release(TORCH_RANGE[0]) <= release(torch) < release(TORCH_RANGE[1])


def match_torch(torch: str, torch_npu: str) -> bool:
    """Whether a wheel of torch_npu is made for a torch: the first three numbers are the same."""
    return parse(torch)[:3] == parse(torch_npu)[:3]


def cann_for(torch_npu: str) -> Requirement:
    """Returns the lowest CANN for a wheel of torch_npu.

    A post-release the table does not list needs what the nearest listed one below it needs.
    """
    wheel = parse(torch_npu)
    listed = {parse(name): cann for name, cann in _CANN.items()}
    if wheel in listed:
        return Requirement(listed[wheel], True)
    below = [name for name in listed if name[:3] == wheel[:3] and name < wheel]
    if below:
        return Requirement(listed[max(below)], False)
    return Requirement(_PRESUMED, False)


def driver_for(cann: str) -> Requirement | None:
    """Returns the lowest driver for a CANN; None for lines older than the tables."""
    for line, driver in _DRIVERS.items():
        if release(cann) == release(line):
            return Requirement(driver, True)
    newest = next(iter(_DRIVERS))
    if release(cann) > release(newest):
        return Requirement(_DRIVERS[newest], False)
    return None


def is_at_least(version: str, lowest: str) -> bool:
    """Compares two versions; `25.2` stands for its first release candidate already."""
    wanted = parse(lowest)
    if lowest.count(".") == 1:
        return parse(version)[:2] >= wanted[:2]
    return parse(version) >= wanted
