"""What trained weights scored, put on their card: it goes where they go, and the run does not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from advisor.flow.learning_curve import FULL
from advisor.flow.run import Run
from evals.errors import AdvisorError
from evals.records import read_json, read_jsonl
from evals.scores import Scores
from trainer.card import add_score


def keep_scores(run: Run, weights: Path, test: Sequence[Scores]) -> None:
    """The tuned model's score on the locked test, and on dev where it was asked there, on the card in `weights`.

    Nothing is asked for it; weights without a card stay without.
    """
    for one in test:
        if one.candidate == FULL:
            add_score(weights, "test", one.metric, one.mean, len(one.items))
    # What was made of the trained weights has brought its own dev score with it.
    for folder in (run.scores, run.path("probes")) if weights.parent == run.path("training") else ():
        path = folder / "dev" / f"{FULL}.jsonl"
        # A record of earlier weights, or a damaged one, is not theirs to show.
        with suppress(AdvisorError, OSError, KeyError, TypeError):
            if path.stat().st_mtime < max(one.stat().st_mtime for one in weights.glob("*.safetensors")):
                continue
            values = [row["score"] for row in read_jsonl(path)]
            add_score(weights, "dev", read_json(path.with_suffix(".json"))["metric"], sum(values) / len(values), len(values))
