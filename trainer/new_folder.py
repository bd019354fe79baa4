"""A folder that appears whole or not at all, and never in the place of another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evals.errors import AdvisorError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to write into; it becomes `out` at the end, all its files on the disk, in one move.

    A process that is killed leaves only the hidden one, which the next call deletes. Raises AdvisorError where `out` exists and
    where the disk does not take it.
    """
    from safetensors import SafetensorError

    require_new(out)
    new = out.parent / f".{out.name}.new"
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        require_new(out)
        os.replace(new, out)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in an error of its own
        raise AdvisorError(
            f"the folder cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(out),
            do="free some disk space or name another folder with --out.",
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def require_new(out: Path) -> None:
    """Raises AdvisorError where there is something already: it is never overwritten."""
    if out.exists() or out.is_symlink():
        raise AdvisorError(
            "there is something here already", where=str(out), do="name a new folder with --out, or move this one."
        )
