"""What the re-evaluation found: the claim on the locked test, and what the general benchmarks say."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.decision.compare import Comparison
from advisor.decision.forgetting import Forgetting
from evals.general.lm_eval import GeneralScores
from evals.scores import Scores
from evals.statistics.margin import NonInferiority


@dataclass(frozen=True)
class General:
    """Base and tuned on the same general items, and all that was made of them."""

    base: GeneralScores
    tuned: GeneralScores
    measures: Forgetting

    @property
    def forgetting(self) -> NonInferiority:
        """The answer about the margin, over the pooled items."""
        return self.measures.pooled


@dataclass(frozen=True)
class JudgeState:
    """What the word of a judge that decides is worth: `labelled` items of which people scored both answers of the claim.

    `to_label` is the file of answers that wait for their scores, where the judge is not calibrated.
    """

    calibrated: bool
    labelled: int
    sentence: str
    to_label: str


@dataclass(frozen=True)
class Reevaluation:
    """`claim` is the one comparison that the test was opened for; `others` stand beside it (Holm over all of them).

    `test` holds the scores of the chosen candidate first, then of those that it was compared with. `tainted` are the test
    items that stand nearly alike in train or dev, and `claim_without_tainted` the claim on the others (None where there are
    none, or too few others).
    """

    chosen: str
    claim: Comparison
    others: tuple[Comparison, ...]
    test: tuple[Scores, ...]
    general: General | None
    earlier_looks: int
    tainted: tuple[str, ...] = ()
    claim_without_tainted: Comparison | None = None
    judge: JudgeState | None = None
