"""A training that is cut off in the middle of a later pass goes on with the rows that it would have seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evals.errors import AdvisorError
from evals.events import Event, TrainingStep, ignore
from evals.records import file_hash, read_json
from tests.trainer import forked
from trainer.job import TrainingJob
from trainer.launch import train
from trainer.order import remembered


def test_kill_9_in_the_middle_of_the_second_pass(
    make_job: Callable[..., TrainingJob], fork_workers: Callable[..., None]
) -> None:
    # Four steps a pass: step 6 is the middle of the second, and the third has yet to be drawn.
    whole, cut = (make_job(name, save_steps=3) for name in ("whole", "cut"))
    train(whole, ignore)

    def kill(event: Event) -> None:
        if isinstance(event, TrainingStep) and event.step == 8:
            forked.Worker.latest.kill()

    with pytest.raises(AdvisorError, match="signal 9"):
        train(cut, kill)
    heard: list[Event] = []
    train(cut, heard.append)
    assert next(event.step for event in heard if isinstance(event, TrainingStep)) == 7
    adapters = [file_hash(job.folder / "adapter" / "adapter_model.safetensors") for job in (whole, cut)]
    assert adapters[0] == adapters[1]


def test_an_order_is_drawn_at_the_start_of_a_pass_and_recalled_within_it(tmp_path: Path) -> None:
    drawn = iter([[2, 0, 1], [1, 2, 0], [0, 1, 2]])

    class Drawing:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> object:
            return iter(next(drawn))

    at = [0]
    sampler = remembered(Drawing(), tmp_path / "orders.json", 4, lambda: at[0])
    assert (len(sampler), list(sampler)) == (3, [2, 0, 1])
    at[0] = 4
    assert list(sampler) == [1, 2, 0]
    at[0] = 6
    assert list(sampler) == [1, 2, 0]
    at[0] = 2
    assert list(sampler) == [2, 0, 1]
    # At the start of a pass it is drawn, kept or not: what follows depends on the random state behind it.
    at[0] = 4
    assert list(sampler) == [0, 1, 2]
    assert read_json(tmp_path / "orders.json")["orders"] == {"0": [2, 0, 1], "1": [0, 1, 2]}
