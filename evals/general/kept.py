"""Answered items on disk: in a run's folder, and the base's in the user's cache, where every later run finds them.

A task's items are `<name>.jsonl` beside `<name>.json`, which says what they are of (weights, settings, items) and their sha256. What does
not match both is as good as absent: it is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engines.hf import HfEngine
from evals.engines.machine import cache_folder
from evals.errors import AdvisorError
from evals.records import file_hash, read_json, read_jsonl, write_json, write_jsonl, write_text

# No benchmark's answers come near it; what is larger is not read.
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Found:
    """Rows that may be used, or None and why not ("" where there is nothing)."""

    rows: list[dict[str, Any]] | None
    why: str = ""


def read_items(home: Path, name: str, key: str) -> Found:
    """What `write_items` has left under this key. Never raises: a file that is damaged, or of others' making, is a reason."""
    path, meta = home / f"{name}.jsonl", home / f"{name}.json"
    if not (path.is_file() and meta.is_file()):
        return Found(None)
    try:
        record = read_json(meta)
        if record.get("input_hash") != key:
            return Found(None, "of other weights, items or settings")
        if path.stat().st_size > MAX_BYTES or record.get("sha256") != file_hash(path):
            return Found(None, "damaged")
        return Found(read_jsonl(path))
    except (OSError, AdvisorError, UnicodeDecodeError):
        return Found(None, "damaged")


def write_items(home: Path, name: str, key: str, rows: Sequence[dict[str, Any]], **about: object) -> None:
    write_jsonl(home / f"{name}.jsonl", rows)
    write_json(home / f"{name}.json", {"input_hash": key, "sha256": file_hash(home / f"{name}.jsonl"), **about})


def base_home(engine: HfEngine) -> Path:
    """Where the answers of these very weights are kept, whatever folder they lie in."""
    return cache_folder() / "general" / engine.fingerprint[:24]


def has_changed(engine: HfEngine) -> bool:
    """Whether other weights lay in the base's folder when answers of it were kept last. Remembers those that are there now."""
    path, folder = cache_folder() / "general" / "bases.json", str(engine.handle.folder.resolve())
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        known = {}
    known = known if isinstance(known, dict) else {}
    before = known.get(folder)
    if before != engine.handle.fingerprint:
        # A cache that cannot be written costs a second measurement, no more.
        with suppress(AdvisorError):
            write_text(path, json.dumps({**known, folder: engine.handle.fingerprint}))
    return before not in (None, engine.handle.fingerprint)
