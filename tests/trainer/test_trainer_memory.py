"""Too little memory: how it is recognised, and that pieces of a batch add up to the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.candidate import PromptFormat
from evals.events import Event, Note
from tests.trainer import faults
from tests.trainer.test_trainer_survives import weights_differ
from trainer.callbacks import Meter
from trainer.job import TrainingJob
from trainer.launch import train
from trainer.memory import _count, oom_kills, out_of_memory
from trainer.surviving import Guard, surviving

MakeJob = Callable[..., TrainingJob]
Fork = Callable[..., None]


def test_what_torch_says_of_too_little_memory_is_understood() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def test_kills_are_read_from_either_kind_of_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 1\n")
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (tmp_path / "damaged").write_text("oom_kill many\n")
    assert [_count(tmp_path / name) for name in ("memory.events", "memory.oom_control", "damaged", "none")] == [3, 2, 0, 0]
    assert oom_kills() >= 0


def test_a_real_lack_of_memory(make_job: MakeJob, fork_workers: Fork) -> None:
    long = tuple(
        replace(row, messages=(replace(row.messages[0], content=row.messages[0].content + " x" * 100),))
        for row in make_job(rows=64).train
    )
    whole, starved = (
        replace(make_job(name, per_device_train_batch_size=64, num_train_epochs=1), prompt_format=PromptFormat(""), train=long)
        for name in ("whole", "starved")
    )
    expected = train(whole, print)
    fork_workers(partial(faults.address_space_ends, 40))
    heard: list[Event] = []
    trained = train(starved, heard.append)
    assert any("do not fit into memory" in event.text for event in heard if isinstance(event, Note))
    assert trained.final_loss == pytest.approx(expected.final_loss, abs=1e-5)
    assert weights_differ(whole, starved) < 1e-5


def test_preferences_whose_loss_is_a_mean_over_pairs(make_job: MakeJob, fork_workers: Fork) -> None:
    settings = {"method": "dpo", "per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    whole, starved = (make_job(name, num_train_epochs=1, **settings) for name in ("whole", "starved"))
    whole, starved = (
        replace(job, train=tuple(replace(row, rejected="x") for row in job.train), dev=()) for job in (whole, starved)
    )
    expected = train(whole, print)
    # A pair is two sequences; five become three and two, which must not count alike.
    fork_workers(partial(faults.no_memory_for, 7))
    trained = train(starved, print)
    assert weights_differ(whole, starved) < 1e-5
    assert trained.train_tokens == expected.train_tokens


@pytest.mark.parametrize("labels", [True, False])
def test_pieces_of_a_mean_count_for_what_they_are_a_mean_of(labels: bool, tmp_path: Path) -> None:
    """A mean over labelled tokens where rows have labels, else over rows; against the gradient of the whole batch, in closed form."""
    import torch
    import transformers

    class Mean(surviving(transformers.Trainer)):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
            if labels:
                counted = (inputs["labels"][:, 1:] != -100).float()
                return (model(inputs["x"]).squeeze(-1) * counted.sum(1)).sum() / counted.sum()
            return model(inputs["x"]).mean()

        def _attempt(self, model: Any, batch: dict[str, Any], items: Any) -> Any:
            loss = super()._attempt(model, batch, items)
            return None if len(batch["x"]) > 2 else loss

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {"x": torch.tensor([row["x"] for row in rows])}
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])} if labels else batch

    rows = [{"x": [float(at), 1.0], "labels": [0] + [7] * (at + 1) + [-100] * (4 - at)} for at in range(5)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", gradient_accumulation_steps=2, remove_unused_columns=False
    )
    trainer = Mean(model=torch.nn.Linear(2, 1, bias=False), args=arguments, data_collator=collate, train_dataset=rows)
    trainer.guard = Guard(tmp_path, "", "job", 1, lambda _: None, Meter())
    trainer._rows_at_once, trainer._of_step, trainer._seen = 0, -1, []
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 2
    trainer.model_accepts_loss_kwargs = False
    trainer.state = SimpleNamespace(global_step=0)
    batches = [{**collate(rows), **row} for row in [{"advisor_rows": SimpleNamespace(rows=tuple(rows))}] * 2]
    losses = [trainer.training_step(trainer.model, batch) for batch in batches]
    weight = [at + 1 if labels else 1 for at in range(5)]
    mean = sum(at * one for at, one in enumerate(weight)) / sum(weight)
    assert trainer.model.weight.grad.tolist()[0] == pytest.approx([mean, 1.0])
    expected = (trainer.model.weight.detach() @ torch.tensor([[mean], [1.0]])) / 2
    assert [float(loss) for loss in losses] == pytest.approx([float(expected)] * 2)
    assert trainer._rows_at_once == 2
