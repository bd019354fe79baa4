"""The figures and goals of `forgetting.py`, from one row an adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from harness import Bench
from rich.console import Console
from rich.table import Table

from evals.statistics.margin import NonInferiority

# A loss that has to be found, and one that is none, on `standard`.
LOST, NONE = 0.08, 0.01
WON_BACK, GAIN_KEPT, OF_TEN = 0.5, 0.8, 0.8
SPEARMAN = 0.5


@dataclass(frozen=True)
class Row:
    """An adapter: `gain` on rows that chose nothing, over the unchanged model with the whole instruction. Of what repair chose:
    its name, its loss on `standard`, and its gain on the same rows."""

    name: str
    kl: float
    quick: NonInferiority
    standard: NonInferiority
    gain: float
    repaired: str = ""
    loss_after: NonInferiority | None = None
    gain_after: float | None = None

    @property
    def won_back(self) -> float | None:
        lost = -self.standard.estimate
        return None if self.loss_after is None or lost <= 0 else (self.loss_after.estimate + lost) / lost

    @property
    def gain_kept(self) -> float | None:
        return None if self.gain_after is None or self.gain <= 0 else self.gain_after / self.gain

    @property
    def mended(self) -> bool:
        return (self.won_back or 0.0) >= WON_BACK and (self.gain_kept or 0.0) >= GAIN_KEPT


def points(found: NonInferiority | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.estimate:+.1f} ({100 * found.low:+.1f}, {100 * found.high:+.1f}) {found.answer}"


def told(row: Row) -> str:
    after = (
        "" if row.loss_after is None else f"; {row.repaired}: {points(row.loss_after)}, gain {100 * (row.gain_after or 0):+.1f}"
    )
    return (
        f"{row.name}: gain {100 * row.gain:+.1f}, KL {row.kl:.3f}, quick {points(row.quick)}, standard {points(row.standard)}"
        f"{after or (row.repaired and f'; {row.repaired}')}"
    )


def spearman(kl: Sequence[float], loss: Sequence[float]) -> tuple[float, float]:
    """Rank correlation and the lower bound of its 95% interval: Fisher's z with the standard error of Bonett and Wright (2000,
    Psychometrika 65:23), sqrt((1 + r^2 / 2) / (n - 3))."""
    from scipy.stats import spearmanr

    r = float(spearmanr(kl, loss).statistic)
    if len(kl) < 4 or abs(r) >= 1:
        return r, r if len(kl) >= 4 else -1.0
    error = math.sqrt((1 + r * r / 2) / (len(kl) - 3))
    return r, math.tanh(math.atanh(r) - NormalDist().inv_cdf(0.975) * error)


def shown(rows: Sequence[Row]) -> Table:
    table = Table(
        "adapter", "gain", "KL", "quick", "standard", "repaired to", "standard after", "gain after", "won back", "kept"
    )
    for row in sorted(rows, key=lambda one: one.standard.estimate, reverse=True):
        table.add_row(
            row.name,
            f"{100 * row.gain:+.1f}",
            f"{row.kl:.3f}",
            points(row.quick),
            points(row.standard),
            row.repaired,
            points(row.loss_after),
            "" if row.gain_after is None else f"{100 * row.gain_after:+.1f}",
            "" if row.won_back is None else f"{100 * row.won_back:.0f}%",
            "" if row.gain_kept is None else f"{100 * row.gain_kept:.0f}%",
        )
    return table


def report(bench: Bench, rows: Sequence[Row], *, mended: bool) -> None:
    Console(width=220).print(shown(rows))
    lost = [row for row in rows if row.standard.estimate <= -LOST]
    none = [row for row in rows if row.standard.estimate >= -NONE]
    caught = [row for row in lost if row.quick.answer == "broken"]
    missed = [row.name for row in lost if row.quick.answer != "broken"]
    passed = [row.name for row in lost if row.quick.answer == "holds"]
    false = [row.name for row in none if row.quick.answer == "broken"]
    r, low = spearman([row.kl for row in rows], [-row.standard.estimate for row in rows])
    bench.figure("adapters", len(rows))
    bench.figure(
        "lost 8 points or more on standard", {"count": len(lost), "called broken": len(caught), "missed": ", ".join(missed)}
    )
    bench.figure("lost less than 1 point on standard", {"count": len(none), "called broken": ", ".join(false) or "none"})
    bench.figure("spearman of KL and loss", {"r": r, "lower 95% bound": low})
    bench.goal("of adapters that lost 8 points, called broken by quick", 1.0, len(caught) / max(1, len(lost)), not missed)
    bench.goal("without loss, called broken by quick", 0, len(false), not false)
    bench.goal("spearman, lower 95% bound", SPEARMAN, low, low >= SPEARMAN)
    bench.invariant("no adapter that lost 8 points is said to hold", not passed)
    if mended:
        # Weights that gain nothing are not to be mended: whoever asks is told to stay with what is unchanged.
        of = [row for row in lost if row.gain > 0]
        good = [row for row in of if row.mended]
        bench.figure(
            "repaired",
            {
                "lost 8 points": len(lost),
                "of these had a gain to keep": len(of),
                "half the loss won back and 80% of the gain kept": len(good),
                "not": ", ".join(row.name for row in of if not row.mended),
            },
        )
        bench.goal("of those with a gain, mended", OF_TEN, len(good) / max(1, len(of)), len(good) >= OF_TEN * len(of) > 0)
