"""Large files that are written once and then memory-mapped: a CRC-32 of each block tells whether they are still whole."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 1 << 22
# Blocks that one opening reads: all of 256 MiB, and of a larger file as many, evenly spaced.
LOOKED_AT = 64


@dataclass(frozen=True)
class Seal:
    """Bytes of a file, and the CRC-32 of each `BLOCK` of them."""

    size: int
    checks: tuple[int, ...]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Seal:
        """Raises KeyError, TypeError or ValueError where the record is none."""
        seal = cls(int(record["size"]), tuple(int(one) for one in record["checks"]))
        if len(seal.checks) != -(-seal.size // BLOCK):
            raise ValueError("a seal with too few checks")
        return seal


class SealedFile:
    """Writes a file and its seal. `close` puts it on the disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.size = 0
        self._checks: list[int] = []

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self._file.write(rest)
        while len(rest):
            used = self.size % BLOCK
            part = rest[: BLOCK - used]
            if used:
                self._checks[-1] = zlib.crc32(part, self._checks[-1])
            else:
                self._checks.append(zlib.crc32(part))
            self.size += len(part)
            rest = rest[len(part) :]

    def close(self) -> Seal:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Seal(self.size, tuple(self._checks))

    def abandon(self) -> None:
        self._file.close()


def damage(path: Path, seal: Seal) -> str | None:
    """What is wrong with a file, as far as one quick look tells; None where nothing is."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    if size != seal.size:
        return f"{path.name} has {size:,} bytes and not {seal.size:,}"
    some = range(0, len(seal.checks), max(1, -(-len(seal.checks) // LOOKED_AT)))
    wrong = sum(not whole for _, whole in _blocks(path, seal, some))
    return f"{path.name} is damaged ({wrong} of {len(some)} blocks looked at)" if wrong else None


def whole_parts(path: Path, seal: Seal) -> Iterator[tuple[int, int]]:
    """(from, to) in bytes of the blocks that are still what was written; nothing of a missing file."""
    if path.is_file():
        for number, whole in _blocks(path, seal, range(len(seal.checks))):
            if whole:
                yield number * BLOCK, min((number + 1) * BLOCK, seal.size)


def _blocks(path: Path, seal: Seal, numbers: Sequence[int]) -> Iterator[tuple[int, bool]]:
    with path.open("rb") as file:
        for number in numbers:
            file.seek(number * BLOCK)
            length = min(BLOCK, seal.size - number * BLOCK)
            block = file.read(length)
            yield number, len(block) == length and zlib.crc32(block) == seal.checks[number]
