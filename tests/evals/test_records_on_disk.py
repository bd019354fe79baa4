"""Records are whole or not there: through kill -9, a full disk and a torn last line."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from evals.errors import AdvisorError
from evals.records import content_hash, jsonable, read_json, read_jsonl, write_json, write_jsonl, write_text

WRITER = """
import sys
from pathlib import Path
from evals.records import write_json
turn = 0
while True:
    turn += 1
    write_json(Path(sys.argv[1]), {"turn": turn, "body": [turn] * 20_000})
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    turns = []
    for wait in (0.0, 0.013, 0.031, 0.057):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        before = path.stat().st_mtime_ns if path.exists() else 0
        deadline = time.monotonic() + 30
        while (not path.exists() or path.stat().st_mtime_ns == before) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        record = read_json(path)
        assert set(record["body"]) == {record["turn"]}
        assert len(record["body"]) == 20_000
        turns.append(record["turn"])
    assert turns[-1] > 0


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow past `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_the_old_record_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"value": "old"})
    with no_file_over(1000), pytest.raises(AdvisorError) as caught:
        write_json(path, {"value": "new" * 1000})
    assert read_json(path)["value"] == "old"
    assert "free some disk space" in caught.value.do
    assert caught.value.where == str(path)
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]


def test_no_space_left_is_said_in_the_systems_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AdvisorError, match="No space left on device"):
        write_text(tmp_path / "a" / "record.txt", "text")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_in_the_place_of_a_record_is_an_error_with_a_place(tmp_path: Path) -> None:
    (tmp_path / "record.json" / "x").mkdir(parents=True)
    with pytest.raises(AdvisorError, match="could not be written"):
        write_json(tmp_path / "record.json", {})


@dataclass(frozen=True)
class Inner:
    path: Path
    numbers: tuple[float, ...]


def test_jsonable_gives_plain_json() -> None:
    value = {
        1: Inner(Path("a/b"), (1.0, float("nan"), float("inf"), float("-inf"))),
        "numpy": [np.float32(0.5), np.float64("nan"), np.int64(3), np.bool_(True), np.array([[1.0, np.nan]])],
        "set": {"b", "a"},
        "map": MappingProxyType({"k": None}),
    }
    assert jsonable(value) == {
        "1": {"path": "a/b", "numbers": [1.0, None, None, None]},
        "numpy": [0.5, None, 3, True, [[1.0, None]]],
        "set": ["a", "b"],
        "map": {"k": None},
    }
    json.dumps(jsonable(value), allow_nan=False)


def test_the_hash_of_a_set_is_the_same_in_every_process() -> None:
    words = [f"word {number}" for number in range(50)]
    code = f"from evals.records import content_hash; print(content_hash(set({words!r})))"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {content_hash(set(words))}


def test_the_hash_knows_order_of_lists_and_not_of_keys() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash([1, 2]) != content_hash([2, 1])
    assert content_hash({"a": 1}) != content_hash({"a": "1"})


def test_half_a_surrogate_pair_survives_the_disk(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"text": "\ud83d é"}])
    assert read_jsonl(tmp_path / "r.jsonl") == [{"text": "\ud83d é"}]


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_torn_last_line_is_left_out_wherever_it_was_torn(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    last = '{"a": "éü"}'.encode()
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + last[:cut])
    assert [row["a"] for row in read_jsonl(path)] == [1, 2] + (["éü"] if cut >= len(last) else [])


@pytest.mark.parametrize("middle", ["{broken", '"text"', "\xff", "[" * 100_000])
def test_a_damaged_line_in_the_middle_is_refused_with_its_number(tmp_path: Path, middle: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": 1}\n' + middle.encode("latin-1") + b'\n{"a": 2}\n')
    with pytest.raises(AdvisorError, match="damaged") as caught:
        read_jsonl(path)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("body", [b"{", b"", b"[1]", b'{"schema_version": 2}', b"{}", b"\xff", b"[" * 100_000])
def test_a_record_that_is_not_ours_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "r.json").write_bytes(body)
    with pytest.raises(AdvisorError, match=r"damaged|schema_version"):
        read_json(tmp_path / "r.json")
