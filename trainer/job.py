"""What a training is asked to do and what it gives back, and how both lie on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from evals.candidate import PromptFormat
from evals.engines.engine import Message
from evals.engines.models import weights_fingerprint
from evals.errors import AdvisorError
from evals.records import content_hash, read_json, read_jsonl, write_json, write_jsonl
from evals.task.example import Example
from trainer.recipe import Recipe
from trainer.replay import Replay

# Raise this when the same job would no longer give the same adapter.
TRAINER_VERSION = 2


@dataclass(frozen=True)
class TrainingJob:
    """One training. It is given `train` and `dev` only, so that no test row can leak into it.

    `folder` is the job's own: checkpoints, events, log and adapter. `purpose` is a few words for people ("probe 1/2").
    """

    model_folder: Path
    recipe: Recipe
    prompt_format: PromptFormat
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    folder: Path
    dtype: str
    purpose: str
    replay: tuple[Replay, ...] = ()

    @property
    def input_hash(self) -> str:
        """Names everything that the adapter depends on; `save_steps`, `folder` and `purpose` are no part of it."""
        return content_hash(
            {
                "trainer": TRAINER_VERSION,
                "weights": weights_fingerprint(self.model_folder),
                "recipe": replace(self.recipe, save_steps=1),
                "format": self.prompt_format,
                "train": self.train,
                "dev": self.dev,
                "replay": self.replay,
                "dtype": self.dtype,
            }
        )

    def write(self, input_hash: str) -> None:
        """Rows first, `job.json` last: a job that is there is whole."""
        write_jsonl(self.folder / "train.jsonl", self.train)
        write_jsonl(self.folder / "dev.jsonl", self.dev)
        write_jsonl(self.folder / "replay.jsonl", self.replay)
        record = {
            "input_hash": input_hash,
            "model_folder": self.model_folder.resolve(),
            "recipe": self.recipe,
            "prompt_format": self.prompt_format,
            "dtype": self.dtype,
            "purpose": self.purpose,
        }
        write_json(self.folder / "job.json", record)

    @staticmethod
    def read(folder: Path) -> tuple[TrainingJob, str]:
        """The job of a folder and its input hash. Raises AdvisorError where the record is damaged."""
        record = read_json(folder / "job.json")
        recipe = dict(record["recipe"])
        if isinstance(recipe["lora_target_modules"], list):
            recipe["lora_target_modules"] = tuple(recipe["lora_target_modules"])
        job = TrainingJob(
            model_folder=Path(record["model_folder"]),
            recipe=Recipe(**recipe),
            prompt_format=PromptFormat(**record["prompt_format"]),
            train=tuple(_example(row) for row in read_jsonl(folder / "train.jsonl")),
            dev=tuple(_example(row) for row in read_jsonl(folder / "dev.jsonl")),
            folder=folder,
            dtype=record["dtype"],
            purpose=record["purpose"],
            replay=tuple(Replay(**row) for row in read_jsonl(folder / "replay.jsonl")),
        )
        return job, str(record["input_hash"])


@dataclass(frozen=True)
class TrainedAdapter:
    """A finished training. `folder` holds the LoRA adapter (safetensors, fp32).

    `seconds` is the wall time of the training steps, summed over resumed parts; `train_tokens` counts prompt and answer
    of every row of every epoch; `final_loss` is the mean of the last ten steps, `dev_loss` that of dev's answer tokens.
    """

    folder: Path
    input_hash: str
    steps: int
    train_tokens: int
    seconds: float
    tokens_per_second: float
    final_loss: float
    dev_loss: float | None
    peak_memory_mib: float
    rows: int
    dropped: int
    reused: bool

    def write(self, job_folder: Path) -> None:
        """`training.json`, the last file of a training: while it is missing the training is unfinished."""
        record = asdict(self)
        del record["folder"], record["reused"]
        write_json(job_folder / "training.json", record)


def finished(job_folder: Path, input_hash: str, *, reused: bool) -> TrainedAdapter | None:
    """The finished training of a job's folder, if there is one of this input hash."""
    adapter = job_folder / "adapter"
    if not (adapter / "adapter_model.safetensors").is_file():
        return None
    try:
        record = read_json(job_folder / "training.json")
        names = {field.name for field in fields(TrainedAdapter)} - {"folder", "reused"}
        if record["input_hash"] != input_hash:
            return None
        return TrainedAdapter(folder=adapter, reused=reused, **{name: record[name] for name in names})
    except (OSError, AdvisorError, KeyError):
        return None


def _example(row: Mapping[str, Any]) -> Example:
    return Example(
        id=row["id"],
        messages=tuple(Message(**message) for message in row["messages"]),
        target=row["target"],
        gold_passages=tuple(row["gold_passages"]),
        group=row["group"],
    )
