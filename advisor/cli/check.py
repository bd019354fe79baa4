"""`advisor check`: what was read, what is wrong with it, both rows of each leak; and what `--fix` changed."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from advisor.cli.display import Display
from advisor.cli.mask import print_mask
from advisor.flow.checks import check_data
from advisor.flow.drift import drift
from advisor.flow.fix import fix as fix_data
from advisor.flow.intake import read_task, what_dev_can_tell
from advisor.flow.run import EXAMPLES
from advisor.flow.session import Session
from evals.errors import clean
from evals.records import jsonable
from evals.task.checks.findings import Checks, Finding, counts, shown
from evals.task.load import find_task

EACH = 3
COLOURS = {"error": "red", "warning": "yellow", "review": "cyan", "info": "dim"}


def check(name: str, runs_dir: Path, *, fix: Path | None, embed: bool, as_json: bool) -> int:
    """The exit code: 0 where the task can be used, whatever there is to look at. Raises with all problems where it cannot."""
    if fix is not None:
        return _fix(name, fix, as_json=as_json)
    task = read_task(name)
    with Display() as display:
        session = Session(task, display.on_event)
        checked = check_data(task, session, display.on_event, embed=embed)
    checks, mask = checked.checks, checked.mask
    changed = drift(task, runs_dir)
    said = [*task.said, what_dev_can_tell(task), *(changed.sentences() if changed else ())]
    if as_json:
        body = {"name": task.name, "output_type": task.output_type, "metrics": task.metrics, "said": said, **checks.record()}
        print(json.dumps(jsonable(body), indent=2, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    for sentence in said:
        console.print(f"- {escape(clean(sentence))}", soft_wrap=True)
    _print_findings(console, checks)
    if mask:
        print_mask(console, mask)
    found = sum(one.level in {"error", "warning"} for one in checks.findings)
    review = sum(one.level == "review" for one in checks.findings)
    seconds = sum(checks.seconds.values())
    console.print(f"{escape(task.name)}: it can be used; {found} warnings, {review} rows to look at ({seconds:.1f} s)")
    return 0


def _print_findings(console: Console, checks: Checks) -> None:
    """A heading for each kind of finding, then the first few with their rows."""
    kinds: dict[str, list[Finding]] = {}
    for one in checks.findings:
        kinds.setdefault(one.check, []).append(one)
    for name, some in kinds.items():
        level = some[0].level
        console.print(f"[{COLOURS[level]}]{level}[/] [bold]{escape(name)}[/bold] ({counts(checks)[name]})")
        for one in some[:EACH]:
            console.print(f"  {escape(clean(one.message))}", soft_wrap=True)
            for text in shown(one):
                console.print(f"    [dim]{escape(clean(text))}[/dim]", soft_wrap=True)
        if len(some) > EACH:
            console.print(f"  … and {len(some) - EACH} more: --json has them all")
    for reason in checks.not_checked:
        console.print(f"[dim]not checked: {escape(reason)}[/dim]", soft_wrap=True)


def _fix(name: str, out: Path, *, as_json: bool) -> int:
    with Display() as display:
        fixed = fix_data(find_task(name, EXAMPLES), out, display.on_event)
    if as_json:
        print(json.dumps(jsonable(fixed), indent=2, ensure_ascii=False))
        return 1 if fixed.remaining else 0
    for change in fixed.changes:
        print(clean(str(change)))
    for split, path in fixed.written.items():
        print(f"{split}: {fixed.kept[split]} rows written to {path}; name it in the task file under `data: {{{split}: …}}`")
    for problem in fixed.remaining:
        print(f"not mended: {problem}")
    return 1 if fixed.remaining else 0
