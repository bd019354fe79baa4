"""`advisor export RUN`: trained weights as a folder of their own, and what came of merging them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evals.errors import clean


def add_arguments(one: argparse.ArgumentParser) -> None:
    one.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder (default: named after the run, here)")
    one.add_argument("--merge", action="store_true", help="merge the adapter into its base: a whole model, compared on dev")
    one.add_argument(
        "--saved-in",
        choices=("base", "float32"),
        default="base",
        help="dtype of merged weights: as the base is stored (default), or float32",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0. Raises AdvisorError where there is nothing to export, or something in the way."""
    from advisor.cli.display import Display
    from advisor.flow.export import export
    from evals.records import jsonable

    with Display() as display:
        found = export(
            arguments.name,
            arguments.runs_dir,
            arguments.out,
            display.on_event,
            merged=arguments.merge,
            saved_in=arguments.saved_in,
        )
    if arguments.json:
        print(json.dumps(jsonable(found), indent=2, ensure_ascii=False))
        return 0
    print(clean(f"{found.folder}: {found.card.base.name}, {found.card.title}"))
    if found.parity:
        print(clean(found.parity.sentence()))
    return 0
