"""Small training jobs on the tiny model of tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.task.example import Example
from tests.trainer import forked
from trainer import launch
from trainer.job import TrainingJob
from trainer.recipe import Recipe

COLOURS = ["red", "blue", "green", "pink"]


def colour_rows(count: int, split: str = "train") -> tuple[Example, ...]:
    """Name a colour by its first letter."""
    words = [COLOURS[number % len(COLOURS)] for number in range(count)]
    return tuple(
        Example(f"{split}-{number}", (Message("user", f"{word} {number}"),), word[0]) for number, word in enumerate(words)
    )


@pytest.fixture
def make_job(tiny_model: Path, tmp_path: Path) -> Callable[..., TrainingJob]:
    def make(name: str = "job", *, rows: int = 32, **recipe: Any) -> TrainingJob:
        settings = {"num_train_epochs": 3, "learning_rate": 1e-2, "save_steps": 4, "lora_r": 4, **recipe}
        return TrainingJob(
            model_folder=tiny_model,
            recipe=Recipe(**settings),
            prompt_format=PromptFormat("Say the letter.", "inline"),
            train=colour_rows(rows),
            dev=colour_rows(8, "dev"),
            folder=tmp_path / name,
            dtype="float32",
            purpose=name,
        )

    return make


@pytest.fixture(scope="session")
def fork_server() -> None:
    forked.start_server()


@pytest.fixture
def fork_workers(fork_server: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """From now on the launcher forks its workers; the one argument is a fault that is planted in them (None: no more)."""

    def fork(fault: forked.Fault | None = None) -> None:
        monkeypatch.setattr(launch.subprocess, "Popen", partial(forked.Worker, fault=fault))

    fork()
    return fork
