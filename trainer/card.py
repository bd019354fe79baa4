"""The card of trained weights: what they were made from and how, so that another machine can check, load and ask them."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evals.candidate import PromptFormat
from evals.engines.adapter_card import ABOUT, AGAIN, CARD, check_files
from evals.engines.machine import cache_folder
from evals.engines.models import weights_fingerprint
from evals.errors import AdvisorError, clean
from evals.records import content_hash, file_hash, jsonable, read_json, write_json, write_text
from trainer.job import TRAINER_VERSION, TrainedAdapter, TrainingJob, flattering
from trainer.recipe import Recipe

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "safetensors", "tokenizers")
# How a folder in our own cache of models ends: 12 hex digits of a hash.
PINNED = re.compile(r"-[0-9a-f]{12}$")
MARKUP = re.compile(r"([\\`*_\[\]<>|~&@!#]|(?<=www)\.|:(?=//))", re.IGNORECASE)


@dataclass(frozen=True)
class Base:
    """The weights that training began with. `fingerprint` is of weights, tokeniser and chat template; `dtype` is what it ran in."""

    name: str
    fingerprint: str
    dtype: str


@dataclass(frozen=True)
class Data:
    """Rows of one kind (train, dev, replay): how many, and the hash of their content in their order."""

    rows: int
    hash: str


@dataclass(frozen=True)
class Measured:
    """The mean of the task's deciding metric over n items of a split."""

    metric: str
    mean: float
    n: int


@dataclass(frozen=True)
class Parent:
    """Weights that these were made of. `digest` is of their files, `weight` their part in a combination."""

    name: str
    digest: str
    weight: float


@dataclass(frozen=True)
class Card:
    """`kind` is `adapter`, or `model` where the folder holds a whole model. `how` says what made it: `training`, `merge`, or the
    way in which `parents` were combined. What only a training has is empty for the others: rows, losses, seconds, and of how many
    looks at dev its weights are the best (`chosen_of`)."""

    kind: str
    title: str
    how: str
    base: Base
    method: str
    recipe: Mapping[str, Any]
    prompt_format: PromptFormat
    data: Mapping[str, Data]
    trainer: int
    packages: Mapping[str, str]
    input_hash: str = ""
    steps: int = 0
    seconds: float = 0.0
    final_loss: float | None = None
    dev_loss: float | None = None
    chosen_of: int = 0
    scores: Mapping[str, Measured] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Names the weights by their files."""
        return content_hash(self.files)

    @property
    def rows(self) -> int:
        return self.data["train"].rows if "train" in self.data else 0


def write_card(folder: Path, job: TrainingJob, trained: TrainedAdapter) -> Card:
    """`card.json` and a README of what a training has put into `folder`. Last but one: `training.json` comes after it."""
    recipe = job.recipe
    card = Card(
        kind="adapter" if recipe.use_peft else "model",
        title=recipe.title,
        how="training",
        base=Base(model_name(job.model_folder), weights_fingerprint(job.model_folder), job.dtype),
        method=recipe.method,
        recipe=asdict(recipe),
        prompt_format=job.prompt_format,
        data={name: Data(len(rows), content_hash(rows)) for name, rows in _rows(job).items()},
        trainer=TRAINER_VERSION,
        packages=packages(),
        input_hash=trained.input_hash,
        steps=trained.steps,
        seconds=trained.seconds,
        final_loss=trained.final_loss,
        dev_loss=trained.dev_loss,
        chosen_of=trained.chosen_of,
    )
    return put_card(folder, card)


def _rows(job: TrainingJob) -> dict[str, Sequence[Any]]:
    return {"train": job.train, "dev": job.dev, "replay": () if job.recipe.method == "dpo" else job.replay}


def put_card(folder: Path, card: Card) -> Card:
    """Write a card with the hashes of the files that are in the folder now; the README first, so that a card that is there is last."""
    named = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in ABOUT and path.name[0] != ".")
    card = replace(card, files={path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in named})
    _write(folder, card)
    return card


def _write(folder: Path, card: Card) -> None:
    write_text(folder / "README.md", readme(card))
    write_json(folder / CARD, card)


def read_card(folder: Path, *, deep: bool = True) -> Card:
    """The card of a folder, held to the files beside it (their sizes alone where not `deep`).

    Raises AdvisorError where there is none, where it is damaged, and where the files are others.
    """
    path = folder / CARD
    if not path.is_file():
        raise AdvisorError(
            "these weights have no card: nothing says which base they are of",
            where=str(folder),
            do="train them again with this version (`advisor train`).",
        )
    record = read_json(path)
    try:
        # It may have come from anywhere: each value is of its kind, or the card is damaged.
        card = TypeAdapter(Card).validate_python(record)
    except ValidationError as error:
        raise AdvisorError("this card is damaged", where=str(path), do=AGAIN) from error
    check_files(folder, record, deep=deep)
    return card


def add_score(folder: Path, split: str, metric: str, mean: float, n: int) -> None:
    """Put what the weights scored on a split of their task on their card. Nothing where the folder has no card."""
    if not (folder / CARD).is_file():
        return
    card = read_card(folder, deep=False)
    measured = Measured(metric, mean, n)
    if card.scores.get(split) != measured:
        _write(folder, replace(card, scores={**card.scores, split: measured}))


def model_name(folder: Path) -> str:
    """What people call the model of a folder, without the machine's path: its Hub name, our pinned name, or the folder's."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    if folder.parent == (cache_folder() / "models").resolve():
        return PINNED.sub("", folder.name)
    return folder.name


def packages() -> dict[str, str]:
    """Versions of what made the weights; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def readme(card: Card) -> str:
    """The card for people, in Markdown in which names and texts of the task's are text: no markup, no HTML, no control codes."""
    lines = [f"# {escaped(card.base.name)}: {escaped(card.title)}", "", *_table(_facts(card)), ""]
    if card.prompt_format.instruction:
        lines += ["It was trained to be asked with this instruction:", "", *_literal(card.prompt_format.instruction), ""]
    if card.recipe:
        lines += ["The recipe (TRL's key names):", "", *_literal("\n".join(_recipe(card))), ""]
    lines += [f"Everything else (hashes of rows and files, versions) is in `{CARD}`.", ""]
    return "\n".join(lines)


def _facts(card: Card) -> dict[str, str]:
    """What stands in the table, by its heading."""
    facts = {"base": f"{card.base.name} ({card.base.fingerprint[:12]}, {card.base.dtype})", "made by": card.how}
    if card.parents:
        facts["of"] = ", ".join(f"{one.weight:g} x {one.name} ({one.digest[:8]})" for one in card.parents)
    for name, data in card.data.items():
        facts[f"{name} rows"] = f"{data.rows} ({data.hash[:12]})"
    if card.steps:
        facts["training"] = f"{card.steps} steps, {card.seconds:.0f} s"
    for name, loss in (("loss, last steps", card.final_loss), ("loss on dev", card.dev_loss)):
        if loss is not None:
            facts[name] = f"{loss:.4f}"
    for split, one in card.scores.items():
        facts[f"{one.metric} on {split}"] = f"{one.mean:.3f} (n = {one.n})"
    if told := flattering(Recipe.of(card.recipe), card.chosen_of):
        facts["chosen on dev"] = told
    facts["versions"] = ", ".join(f"{name} {one}" for name, one in card.packages.items())
    return facts


def _recipe(card: Card) -> list[str]:
    return [f"{name}: {jsonable(value)}" for name, value in card.recipe.items()]


def _table(facts: Mapping[str, str]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {escaped(name)} | {escaped(text)} |" for name, text in facts.items())]


def _literal(text: str) -> list[str]:
    """An indented block, which Markdown takes as it stands."""
    return [f"    {line}" for line in clean(text).splitlines()]


def escaped(text: str) -> str:
    """One line of text in which nothing is markup."""
    return MARKUP.sub(r"\\\1", " ".join(clean(text).split()))
