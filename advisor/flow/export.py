"""Export: a run's trained weights as a folder of their own; merged into the base, with how alike the two answer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

from advisor.decision.compare import Comparison, compare, span_of
from advisor.flow.advice import groups_of
from advisor.flow.repair import weights_of
from advisor.flow.run import find_run, task_of
from advisor.flow.session import Session
from advisor.flow.tuned import tuned_candidate
from evals.candidate import Candidate
from evals.engines.handle import ModelHandle
from evals.engines.hf import HfEngine
from evals.errors import AdvisorError, UsageError
from evals.evaluate import evaluate
from evals.events import OnEvent, waiting
from evals.records import write_json
from evals.scores import Scores
from trainer.adapters import WEIGHTS, Adapters, base_of
from trainer.card import Card, add_score, read_card
from trainer.merge import SavedIn, merge_into, stored_dtype
from trainer.new_folder import new_folder, require_new

PARITY = "parity.json"


@dataclass(frozen=True)
class Parity:
    """How alike merged weights and their adapter answer `n` dev items greedily, both run in `dtype` by the same engine.

    `same_answers` is the share of answers that are equal to the letter; `same_tokens` the share of tokens before the first that
    differs, of all tokens of the longer answer. `score` is the paired difference of the task's score, merged minus adapter.
    """

    n: int
    dtype: str
    saved_in: str
    same_answers: float
    same_tokens: float
    adapter: float
    merged: float
    score: Comparison

    def sentence(self) -> str:
        told = span_of(self.score.difference, self.score.low, self.score.high, self.n)
        return (
            f"merged ({self.saved_in}) against the adapter on dev, both run in {self.dtype}: {100 * self.same_tokens:.1f}% of tokens "
            f"and {100 * self.same_answers:.1f}% of answers are the same; {self.score.metric} {self.merged:.3f} against "
            f"{self.adapter:.3f}, {told}"
        )


@dataclass(frozen=True)
class Exported:
    """`parity` is of merged weights; None where weights were copied as they are."""

    folder: Path
    card: Card
    parity: Parity | None


def export(
    name: str, runs_dir: Path, out: Path | None, on_event: OnEvent, *, merged: bool = False, saved_in: SavedIn = "base"
) -> Exported:
    """RUN's trained weights, copied (adapter or whole model, with its card) or merged into the base, to a new folder `out`.

    Raises AdvisorError where the run has no trained weights, where they do not fit their card, and where `out` exists.
    """
    run = find_run(name, runs_dir)
    weights = trained_weights(run)
    whole = not (weights / WEIGHTS).is_file()
    if merged and whole:
        raise AdvisorError(
            "there is nothing to merge: all weights of this run were trained", where=str(weights), do="leave --merge out."
        )
    out = out or Path(f"{run.name}-{'merged' if merged else 'model' if whole else 'adapter'}")
    require_new(out)
    card = read_card(weights)
    if not merged:
        with waiting(on_event, f"copying to {out.name}"):
            _copy(weights, out)
        return Exported(out, card, None)
    # Read before the merge: without the task there would be no parity.
    session = Session(task_of(run), on_event)
    base = session.weights.handle.folder
    # Measured before the folder appears: there are no merged weights of which nobody knows how they answer.
    with new_folder(out) as folder:
        with waiting(on_event, "merging into the base"):
            card = merge_into(folder, weights, base, saved_in=saved_in, name=run.name)
        found = parity(session, weights, folder, card, on_event)
    return Exported(out, read_card(out, deep=False), found)


def trained_weights(run: Path) -> Path:
    """The folder with a run's trained weights, the repaired ones where repair has chosen any. Raises AdvisorError where it has none."""
    return weights_of(run, as_trained(run))


def as_trained(run: Path) -> Path:
    """The folder with what a run's training has left, repaired or not. Raises AdvisorError where it has not trained."""
    training = run / "training"
    for folder in (training / "adapter", training / "model"):
        if (training / "training.json").is_file() and any(folder.glob("*.safetensors")):
            return folder
    raise AdvisorError(
        "this run has no trained weights", where=str(run), do="train first: `advisor train TASK`, or `advisor run TASK`."
    )


def _copy(weights: Path, out: Path) -> None:
    with new_folder(out) as folder:
        for path in weights.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copyfile(path, folder / path.name)
        # What was copied is what the card says, whatever happened to the source meanwhile.
        read_card(folder)


def parity(session: Session, adapter: Path, merged: Path, card: Card, on_event: OnEvent) -> Parity:
    """Ask both on dev, and write `parity.json` beside the merged weights.

    Both are asked as the adapter was trained to be, greedily, in the dtype of the task's engine.
    """
    task, handle = session.task, session.weights.handle
    tuned = tuned_candidate(task, session, adapter, "adapter", card.prompt_format)
    engine = HfEngine(ModelHandle(str(merged), handle.dtype, on_event), None, session.responses)
    other = replace(tuned, name="merged", engine=engine)
    with TemporaryDirectory(prefix="advisor-parity-") as scratch:
        first, second = (_asked(session, one, Path(scratch), on_event) for one in (tuned, other))
    same = [_said(one) == _said(two) for one, two in zip(first.items, second.items, strict=True)]
    found = Parity(
        n=len(same),
        dtype=handle.dtype,
        saved_in=stored_dtype(merged),
        same_answers=sum(same) / len(same),
        same_tokens=_same_tokens(session.weights, first, second),
        adapter=first.mean,
        merged=second.mean,
        score=compare(second, first, groups_of(task, "dev")),
    )
    write_json(merged / PARITY, found)
    for folder, scores in ((adapter, first), (merged, second)):
        add_score(folder, "dev", scores.metric, scores.mean, len(scores.items))
    return found


def _asked(session: Session, candidate: Candidate, folder: Path, on_event: OnEvent) -> Scores:
    return evaluate(session.task, candidate, "dev", folder, on_event, session.metrics)


def _said(item: object) -> str:
    return str(getattr(item, "said", "") or getattr(item, "output", ""))


def _same_tokens(engine: HfEngine, first: Scores, second: Scores) -> float:
    """After the first token that differs two greedy answers are of different prompts: what follows is not counted as alike."""
    tokenizer = engine.handle.tokenizer
    same = every = 0
    for one, two in zip(first.items, second.items, strict=True):
        a, b = (tokenizer(_said(item), add_special_tokens=False)["input_ids"] for item in (one, two))
        same += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
        every += max(len(a), len(b))
    return same / every if every else 1.0


def combine(
    names: Sequence[str], weights: Sequence[float], how: str, out: Path, runs_dir: Path, on_event: OnEvent, *, seed: int = 0
) -> Card:
    """A new adapter from those of runs or folders, by `trainer.adapters.Adapters.combine`, written to `out`.

    One alone is scaled by its weight: less of it is less gained and less forgotten (Wortsman et al. 2022, 2109.01903).

    Raises UsageError for what does not go together, AdvisorError where one is missing, of another base or damaged.
    """
    if not names or len(set(names)) < len(names):
        raise UsageError("a combination needs adapters, each of them once")
    if len(weights) != len(names):
        raise UsageError(f"{len(names)} adapters need as many weights, and there are {len(weights)}")
    require_new(out)
    folders = {name: adapter_folder(name, runs_dir) for name in names}
    labels = _labels(folders)
    first = folders[names[0]]
    with waiting(on_event, f"combining {len(names)} adapters"):
        adapters = Adapters(base_of(first, read_card(first)))
        for name in names:
            adapters.add(labels[name], folders[name])
        adapters.combine(
            "combined", {labels[name]: weight for name, weight in zip(names, weights, strict=True)}, how, seed=seed
        )
        return adapters.save("combined", out)


def adapter_folder(name: str, runs_dir: Path) -> Path:
    """An adapter by its own folder, by its name in `advisor adapters`, or by a RUN."""
    for folder in (Path(name), runs_dir / name):
        if (folder / WEIGHTS).is_file():
            return folder
    return trained_weights(find_run(name, runs_dir))


def _labels(folders: Mapping[str, Path]) -> dict[str, str]:
    """Short names for the card and for peft, which takes no dots: the run's or the folder's, never this machine's path."""
    labels: dict[str, str] = {}
    for name, folder in folders.items():
        home = folder.resolve()
        label = home.parent.parent.name if home.parent.name == "training" else home.name
        label = label.replace(".", "_")
        taken = set(labels.values())
        labels[name] = label if label not in taken else f"{label}-{len(taken) + 1}"
    return labels
