"""How many tokens and rows go together: taken from measured rates, kept, and cut short where trials are slow or memory ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.engines import budget
from evals.engines.budget import Budget, measured_budget
from evals.engines.machine import Machine
from evals.events import ignore

MACHINE = Machine("p", 2, "t", "cpu", 2, 100.0, 100.0, 20.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path))
    return tmp_path


def measured(monkeypatch: pytest.MonkeyPatch, read: dict[int, float], step: dict[int, float], most: int = 10**9) -> Budget:
    """`read` and `step` are seconds by size; a missing size has no room."""

    def seconds(table: dict[int, float], size: int) -> float:
        if size not in table:
            raise RuntimeError("CUDA out of memory")
        return table[size]

    monkeypatch.setattr(budget, "_read", lambda forward, size, device: seconds(read, size))
    monkeypatch.setattr(budget, "_step", lambda forward, size, device: seconds(step, size))
    return measured_budget(lambda *_: None, ["model"], MACHINE, most, ignore)


FLAT = {512: 0.1, 1024: 0.2, 2048: 0.4, 4096: 0.8}


def test_the_largest_good_pass_and_the_fewest_good_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading is as fast at all sizes; decoding gains nothing behind 64 rows.
    found = measured(monkeypatch, FLAT, {16: 0.02, 32: 0.02, 64: 0.02, 128: 0.04, 256: 0.08})
    assert found == Budget(4096, 64)


def test_a_slower_size_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, {512: 0.1, 1024: 0.21, 2048: 0.5}, {16: 0.01, 32: 0.1}) == Budget(512, 16)


def test_no_trial_follows_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {512: 0.1, 1024: 0.2, 2048: budget.PATIENCE * 2, 4096: 0.3, 8192: 0.3}
    assert measured(monkeypatch, slow, {16: 1.0}).chunk == 1024


def test_memory_bounds_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = {16: 0.1, 32: 0.1, 64: 0.1, 128: 0.1}
    assert measured(monkeypatch, FLAT, lanes, most=32 * budget.LENGTH) == Budget(4096, 32)
    assert measured(monkeypatch, {}, {}, most=10) == Budget(4096, 32)  # kept: the key is the same


def test_nothing_that_fits_leaves_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, {}, {}) == Budget(1, 1)


def test_it_is_kept_for_its_model_and_machine_and_a_torn_file_does_no_harm(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(monkeypatch, FLAT, {16: 0.1})
    assert measured(monkeypatch, {512: 0.1}, {32: 0.1}) == first
    (cache / "budgets.json").write_text("{torn")
    assert measured(monkeypatch, {512: 0.1}, {16: 0.1}) == Budget(512, 16)


def test_another_error_is_not_taken_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(forward: object, size: int, device: str) -> float:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(budget, "_read", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        measured_budget(lambda *_: None, ["model"], MACHINE, 10**9, ignore)
