"""`advisor adapters`: what trained weights there are; `advisor adapters combine A B`: a new adapter from several."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.errors import UsageError, clean

if TYPE_CHECKING:
    from trainer.adapters import Found

HOWS = ("cat", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")


def add_arguments(one: argparse.ArgumentParser) -> None:
    actions = one.add_subparsers(dest="action", metavar="")
    combine = actions.add_parser("combine", help="make one adapter of several on the same base")
    combine.add_argument("adapters", metavar="ADAPTER", nargs="+", help="a RUN, or a folder with an adapter")
    combine.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="a new folder for the result")
    combine.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="one for each adapter (default: equal shares of 1)"
    )
    combine.add_argument(
        "--how", choices=HOWS, default="cat", help="cat (default) is the exact weighted sum, at the summed rank"
    )
    # The verb's own flags may stand behind the action too; what is left out must not undo what stood before it.
    combine.add_argument("--runs-dir", type=Path, default=argparse.SUPPRESS, help="where runs live")
    combine.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the new card as JSON on stdout")
    combine.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0; 1 where an adapter of the list cannot be used."""
    return _combine(arguments) if arguments.action == "combine" else _list(arguments)


def _combine(arguments: argparse.Namespace) -> int:
    from advisor.cli.display import Display
    from advisor.flow.export import combine
    from evals.records import jsonable

    names = arguments.adapters
    if len(names) == 1 and not arguments.weights:
        raise UsageError("one adapter alone can only be scaled", do="name another, or a weight: `--weights 0.5`.")
    weights = arguments.weights or [1 / len(names)] * len(names)
    with Display() as display:
        card = combine(names, weights, arguments.how, arguments.out, arguments.runs_dir, display.on_event)
    if arguments.json:
        print(json.dumps(jsonable({"folder": arguments.out, "card": card}), indent=2, ensure_ascii=False))
        return 0
    told = " + ".join(f"{one.weight:g} x {one.name}" for one in card.parents)
    print(clean(f"{arguments.out}: {card.base.name}, {card.title}: {told}"))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from evals.records import jsonable
    from trainer.adapters import list_adapters

    found = list_adapters(arguments.runs_dir)
    if arguments.json:
        print(json.dumps(jsonable(found), indent=2, ensure_ascii=False))
    elif not found:
        print(clean(f"no trained weights in {arguments.runs_dir}"))
    else:
        _print(found)
    return 1 if any(one.problem for one in found) else 0


def _print(found: tuple[Found, ...]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("name", "base", "made by", "rows", "dev", "test")
    for one in found:
        if one.card is None:
            continue
        rows = f"{one.card.rows:,}" if one.card.rows else ""
        made = one.card.title if one.card.how == "training" else one.card.how
        cells = (one.name, one.card.base.name, made, rows, _score(one.card, "dev"), _score(one.card, "test"))
        table.add_row(*(escape(clean(cell)) for cell in cells))
    if table.row_count:
        console.print(table)
    for one in found:
        if one.problem:
            console.print(f"[red]cannot be used[/]  {escape(clean(one.name))}: {escape(clean(one.problem))}", soft_wrap=True)


def _score(card: Any, split: str) -> str:
    one = card.scores.get(split)
    return f"{one.metric} {one.mean:.3f} (n = {one.n})" if one else ""
