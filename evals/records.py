"""Records on disk: written atomically, versioned, and named by the hash of what went into them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from evals.errors import AdvisorError

SCHEMA_VERSION = 1


def jsonable(value: Any) -> Any:
    """Dataclasses, tuples, sets, numpy scalars and arrays as plain JSON values; a number that JSON cannot hold becomes None."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: jsonable(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        # A set has no order of its own, and a hash needs one.
        return sorted(map(jsonable, value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return value


def content_hash(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, 64 hex digits."""
    text = json.dumps(jsonable(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: temporary file beside it, fsync, rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise AdvisorError(
            f"could not be written: {error.strerror or error}",
            where=str(path),
            do="free some disk space or choose another place with --runs-dir, then run the same command again.",
        ) from error


def write_json(path: Path, record: Any) -> None:
    body = {"schema_version": SCHEMA_VERSION, **jsonable(record)}
    write_text(path, json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    write_text(path, "".join(json.dumps(jsonable(row), ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path) -> dict[str, Any]:
    """A record of ours. Raises AdvisorError where it is torn, foreign or from a newer version."""
    try:
        record = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise AdvisorError("this record is damaged", where=str(path), do="delete it and run again.") from error
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise AdvisorError(
            f"this record is not of schema_version {SCHEMA_VERSION}", where=str(path), do="delete it and run again."
        )
    return record


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON Lines record. A torn last line (a crash while appending) is left out."""
    rows = []
    # As bytes: the crash may have cut a character in two.
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line.decode("utf-8", "surrogatepass"))
            if not isinstance(row, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise AdvisorError("this record is damaged", where=f"{path}:{number}", do="delete it and run again.") from error
        rows.append(row)
    return rows
