"""`advisor evaluate` over several weights: the kept steps of a training, named models, a chain of tasks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from evals.errors import UsageError, clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from advisor.decision.continual import Chain, Course

RULE = """\
Alone, RUN is measured on the locked test. With --checkpoints the kept steps of its training are measured on dev and on general
benchmarks; with more arguments these weights, in their order. Where all arguments are runs, of more than one task, they are a
chain: each is asked on every task's dev (backward and forward transfer, forgetting). Otherwise all are asked on RUN's task."""


def add_arguments(one: argparse.ArgumentParser) -> None:
    one.description = f"{one.description}. {RULE}"
    one.add_argument("more", metavar="RUN|ADAPTER", nargs="*", help="runs, or folders with an adapter, of the same base")
    one.add_argument(
        "--checkpoints",
        action="store_true",
        help="forgetting and gain over the steps of RUN's training that `train: {save_total_limit: 4}` kept",
    )


def asked(arguments: argparse.Namespace) -> bool:
    """Whether it is more than one RUN's own evaluation."""
    return bool(arguments.more or arguments.checkpoints)


def run(arguments: argparse.Namespace) -> int:
    if arguments.more and arguments.checkpoints:
        raise UsageError("--checkpoints is of one RUN", do="leave it out to hold several weights against each other.")
    from advisor.cli.display import Display
    from advisor.flow.continual import continual

    names = [arguments.name, *arguments.more]
    with Display() as display:
        done = continual(names, arguments.runs_dir, display.on_event, checkpoints=arguments.checkpoints)
    if arguments.json:
        print(done.path.read_text(encoding="utf-8"), end="")
    else:
        _print(done.record)
        print(clean(f"Report: {done.report}"))
    return 0


def _print(record: Course | Chain) -> None:
    from rich.console import Console
    from rich.markup import escape

    from advisor.decision.continual import Course
    from advisor.report import continual as told

    console = Console(highlight=False)
    left_out: tuple[str, ...]
    if isinstance(record, Course):
        left_out = ("general", "broken alone", "KL, the task's prompts")
        _table(record.task, told.course_head(record), told.course_rows(record), left_out)
        console.print(clean(told.curves(record)), markup=False, soft_wrap=True)
    else:
        left_out = ("began with", "general", "broken alone", "KL, general text")
        head, rows = told.chain_head(record), told.chain_rows(record, intervals=False)
        _table(f"dev score after each training. {told.OWN}", head, rows, left_out)
        _table("changes on dev, points", told.TRANSFER_HEAD, told.transfer_rows(record), ("from",))
    for sentence in record.sentences():
        console.print(f"  - {escape(clean(sentence))}", soft_wrap=True)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], left_out: Sequence[str]) -> None:
    """What is left out for the screen's width is in the report."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(clean(title)), title_justify="left")
    shown = [at for at, name in enumerate(head) if name not in left_out]
    for at in shown:
        # A name that is cut short is no name: the rest goes on the next line.
        table.add_column(escape(clean(head[at])), justify="left" if at == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(clean(row[at])) for at in shown))
    Console(highlight=False).print(table)
