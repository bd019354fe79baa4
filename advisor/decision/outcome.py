"""What the re-evaluation found: the claim on the locked test, and what the general benchmarks say."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.decision.compare import Comparison
from evals.evaluate import Scores
from evals.general.lm_eval import GeneralScores
from evals.statistics.margin import NonInferiority


@dataclass(frozen=True)
class General:
    """Base and tuned on the same general items, and the answer about the margin."""

    base: GeneralScores
    tuned: GeneralScores
    forgetting: NonInferiority


@dataclass(frozen=True)
class Reevaluation:
    """`claim` is the one comparison that the test was opened for; `others` stand beside it (Holm over all of them).

    `test` holds the scores of the chosen candidate first, then of those that it was compared with.
    """

    chosen: str
    claim: Comparison
    others: tuple[Comparison, ...]
    test: tuple[Scores, ...]
    general: General | None
    earlier_looks: int
