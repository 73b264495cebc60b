"""Reads the table that `npu-smi info` prints."""

import dataclasses
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Npu:
    """One chip as `npu-smi info` lists it; memory in MiB."""

    index: int
    name: str
    health: str
    used: int
    total: int
    processes: tuple[str, ...] = ()

    @property
    def free(self) -> int:
        return self.total - self.used


def parse_smi(text: str) -> tuple[Npu, ...]:
    """Reads the table of `npu-smi info`: two lines a chip, then the processes of each card.

    The line of the device has its card number, name and health; the line of the chip ends with
    used and total memory. A card of two chips has two such pairs.
    """
    npus: list[Npu] = []
    cards: list[tuple[int, int]] = []  # (card, chip) of each entry
    head: tuple[int, str, str] | None = None
    table, _, processes = text.partition("Process id")
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 2 or not re.match(r"\d+(\s|$)", cells[0]):
            continue
        numbers = re.findall(r"(\d+)\s*/\s*(\d+)", cells[-1])
        if head is None:
            index, _, name = cells[0].partition(" ")
            head = int(index), name.strip(), cells[1]
        elif numbers:
            card, name, health = head
            chip, *global_index = (int(word) for word in cells[0].split()[:2])
            number = global_index[0] if global_index else len(npus)
            used, total = map(int, numbers[-1])
            npus.append(Npu(number, name, health, used, total))
            cards.append((card, chip))
            head = None
    owners: dict[tuple[int, int], list[str]] = {}
    for line in processes.splitlines():
        found = re.match(r"\|\s*(\d+)\s+(\d+)\s*\|\s*(\d+)\s*\|\s*(\S*)", line)
        if found:
            place = int(found[1]), int(found[2])
            owners.setdefault(place, []).append(f"{found[3]} {found[4]}".strip())
    return tuple(
        dataclasses.replace(n, processes=tuple(owners.get(place, ())))
        for n, place in zip(npus, cards, strict=True)
    )
