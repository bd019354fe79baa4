"""`advisor doctor --calibration`: how well past forecasts of training held, on stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from advisor.decision.calibration import Calibration, Held, calibration
from advisor.flow.doctor import CALIBRATION, past_forecasts
from evals.errors import clean
from evals.records import jsonable


def show(runs_dir: Path, *, as_json: bool) -> int:
    past = past_forecasts(runs_dir)
    found = calibration(past)
    if as_json:
        print(json.dumps(jsonable({"calibration": found, "forecasts": past}), indent=2, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    if found is None:
        console.print(
            f"No forecast of training has been followed by a full training yet ({escape(clean(runs_dir / CALIBRATION))}). "
            "Learning curves are bought only where the full training costs more than their points.",
            soft_wrap=True,
        )
        return 0
    console.print(found.sentence(), soft_wrap=True)
    console.print(_bins(found))
    console.print(_each(past))
    return 0


def _bins(found: Calibration) -> Table:
    """Where the forecasts are calibrated, the mean chance lies in the interval of the share that paid."""
    table = Table("chance that it pays", "forecasts", "mean chance", "then paid", "95% interval")
    for one in found.bins:
        interval = f"{one.paid_low:.0%} to {one.paid_high:.0%}"
        table.add_row(f"{one.low:.0%} to {one.high:.0%}", str(one.n), f"{one.chance:.0%}", str(one.paid), interval)
    return table


def _each(past: Sequence[Held]) -> Table:
    table = Table("date", "run", "rows", "foreseen", "95% of one run", "observed", "")
    for one in past:
        table.add_row(
            escape(clean(one.date)),
            escape(clean(one.run)),
            f"{one.rows:,}",
            f"{100 * one.gain:+.1f}",
            f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
            f"{100 * one.observed:+.1f}",
            "" if one.inside else "missed",
        )
    return table
