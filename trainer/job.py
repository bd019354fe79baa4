"""What a training is asked to do and what it gives back, and how both lie on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from evals.candidate import PromptFormat
from evals.engines.engine import Message, ToolCall
from evals.engines.models import weights_fingerprint
from evals.errors import AdvisorError
from evals.records import content_hash, read_json, read_jsonl, write_json, write_jsonl
from evals.scoring import Scoring
from evals.task.example import Example
from trainer.recipe import Recipe
from trainer.replay import Replay
from trainer.saving import ADAPTER, MODEL

# Raise this when the same job would no longer give the same adapter.
TRAINER_VERSION = 4
# Settings that the weights do not depend on.
IRRELEVANT = ("save_steps", "save_total_limit")


@dataclass(frozen=True)
class TrainingJob:
    """One training. It is given `train` and `dev` only, so that no test row can leak into it.

    Rows are Examples for every method: of `pretraining` texts, which are their targets (and no messages); of `dpo` each with the
    answer that lost (`rejected`).

    With `scoring` the task's own metric is measured on dev while it trains.

    `folder` is the job's own: checkpoints, events, log and what was trained. `purpose` is a few words for people ("probe 1/2").
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
    scoring: Scoring | None = None

    @property
    def input_hash(self) -> str:
        """Names everything that the adapter depends on; which checkpoints are kept, `folder` and `purpose` are no part of it."""
        return content_hash(
            {
                "trainer": TRAINER_VERSION,
                "weights": weights_fingerprint(self.model_folder),
                "recipe": _told(self.recipe),
                "format": self.prompt_format,
                "train": self.train,
                "dev": self.dev,
                "replay": self.replay,
                "dtype": self.dtype,
                **({"scoring": self.scoring} if self._chosen_by_score else {}),
            }
        )

    @property
    def _chosen_by_score(self) -> bool:
        return self.recipe.early_stopping_patience > 0 and self.recipe.metric_for_best_model == "score"

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
            "scoring": self.scoring,
        }
        write_json(self.folder / "job.json", record)

    @staticmethod
    def read(folder: Path) -> tuple[TrainingJob, str]:
        """The job of a folder and its input hash. Raises AdvisorError where the record is damaged."""
        record = read_json(folder / "job.json")
        job = TrainingJob(
            model_folder=Path(record["model_folder"]),
            recipe=Recipe.of(record["recipe"]),
            prompt_format=PromptFormat(**record["prompt_format"]),
            train=tuple(_example(row) for row in read_jsonl(folder / "train.jsonl")),
            dev=tuple(_example(row) for row in read_jsonl(folder / "dev.jsonl")),
            folder=folder,
            dtype=record["dtype"],
            purpose=record["purpose"],
            replay=tuple(Replay.of(row) for row in read_jsonl(folder / "replay.jsonl")),
            scoring=Scoring.of(record["scoring"]) if record.get("scoring") else None,
        )
        return job, str(record["input_hash"])


@dataclass(frozen=True)
class TrainedAdapter:
    """A finished training. `folder` holds what was trained (safetensors, fp32): an adapter, or a whole model where all weights learnt.

    `seconds` is the wall time of the training steps, summed over resumed parts; `train_tokens` counts prompt and answer
    of every row of every epoch; `final_loss` is the mean of the last ten steps, `dev_loss` that of dev's answer tokens; `dev_score` is
    the task's own, of a sample of dev, and `kl` how far answers to general questions have moved (nats a token). Where an early stop may
    have chosen the weights, they are the best of `chosen_of` looks at dev (`flattering`).
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
    dev_score: float | None = None
    kl: float | None = None
    chosen_of: int = 0

    def write(self, job_folder: Path) -> None:
        """`training.json`, the last file of a training: while it is missing the training is unfinished."""
        record = asdict(self)
        del record["folder"], record["reused"]
        write_json(job_folder / "training.json", record)


def flattering(recipe: Recipe, looks: int) -> str:
    """What is said where the weights are the best of so many looks at dev: in part the luckiest. Empty where nothing was chosen."""
    best = f"dev's {recipe.metric_for_best_model} is the best of {looks} looks at the same rows, and flatters these weights"
    return f"{best}; rows that chose nothing tell how good they are" if looks > 1 else ""


def finished(job_folder: Path, input_hash: str, *, reused: bool) -> TrainedAdapter | None:
    """The finished training of a job's folder, if there is one of this input hash."""
    folder = _trained(job_folder)
    if folder is None:
        return None
    try:
        record = read_json(job_folder / "training.json")
        names = {field.name for field in fields(TrainedAdapter)} - {"folder", "reused"}
        if record["input_hash"] != input_hash:
            return None
        return TrainedAdapter(folder=folder, reused=reused, **{name: record[name] for name in names if name in record})
    except (OSError, AdvisorError, KeyError, TypeError):
        return None


def _trained(job_folder: Path) -> Path | None:
    """Where the job's weights lie, whole or not."""
    adapter, model = job_folder / ADAPTER, job_folder / MODEL
    if (adapter / "adapter_model.safetensors").is_file():
        return adapter
    return model if (model / "config.json").is_file() and any(model.glob("*.safetensors")) else None


def _told(recipe: Recipe) -> dict[str, Any]:
    """The recipe as far as the weights depend on it."""
    told = {name: value for name, value in asdict(recipe).items() if name not in IRRELEVANT}
    if not recipe.early_stopping_patience:
        del told["eval_steps"], told["metric_for_best_model"]
    return told


def _example(row: Mapping[str, Any]) -> Example:
    return Example(
        id=row["id"],
        messages=tuple(_message(message) for message in row["messages"]),
        target=row["target"],
        gold_passages=tuple(row["gold_passages"]),
        group=row["group"],
        rejected=row["rejected"],
        tools=tuple(row["tools"]),
        calls=tuple(ToolCall(**call) for call in row["calls"]),
    )


def _message(turn: Mapping[str, Any]) -> Message:
    return Message(**{**turn, "tool_calls": tuple(ToolCall(**call) for call in turn["tool_calls"])})
