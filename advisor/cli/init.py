"""`advisor init DATA`: flags first, then questions on stderr for what cannot be guessed, then the file and what it can tell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evals.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from advisor.flow.init import Table, Written
    from advisor.flow.task_yaml import Draft


def add_arguments(one: argparse.ArgumentParser) -> None:
    """The flags. What none of them says is guessed, with its reason, or asked where there is a terminal."""
    one.add_argument("data", metavar="DATA", nargs="?", help="a file, a folder, or a dataset of the Hub (org/name)")
    one.add_argument("--out", type=Path, metavar="FOLDER", help="where task.yaml goes (default: where the data lie)")
    one.add_argument("--name", help="names the task's runs (default: after the file)")
    one.add_argument("--input", metavar="COLUMN", help="the column that is asked")
    one.add_argument("--output", metavar="COLUMN", help="the column that holds the right answer")
    one.add_argument("--instruction", metavar="TEXT", help="what the model is told to do")
    one.add_argument("--model", metavar="NAME", help="a Hub name, a folder or a GGUF file (default: the demo model)")
    one.add_argument("--metric", metavar="NAME", help="the metric that decides (default: by the kind of answer)")
    one.add_argument("--dev", metavar="FILE", help="examples to choose by (default: split from DATA)")
    one.add_argument("--test", metavar="FILE", help="examples for the final claim (default: split from DATA)")
    one.add_argument("--documents", metavar="FOLDER", help="documents that answers are looked up in")
    one.add_argument("--yes", action="store_true", help="take every guess, and ask nothing")
    one.add_argument("--schema", action="store_true", help="print the JSON Schema of task.yaml, for editors, and do nothing")


def run(arguments: argparse.Namespace) -> int:
    """The exit code: 0 where the written task can be used, 1 where its data have problems. Raises UsageError, AdvisorError."""
    if arguments.schema:
        from advisor.flow.schema import schema_text

        print(schema_text(), end="")
        return 0
    if not arguments.data:
        raise UsageError("which data?", do="name a file, a folder or a dataset: `advisor init data.jsonl`.")
    try:
        found, folder = _drafted(arguments, asking=not arguments.yes and sys.stdin.isatty())
    except (EOFError, KeyboardInterrupt) as error:
        raise Interrupted("stopped; nothing was written") from error
    from advisor.flow.init import write

    return _report(arguments, write(found, folder))


def _drafted(arguments: argparse.Namespace, *, asking: bool) -> tuple[Draft, Path]:
    """What the task file will say, and its folder."""
    from advisor.flow.draft import answered, draft
    from advisor.flow.init import look
    from advisor.flow.sources import find_sources
    from advisor.flow.task_yaml import in_comment

    sources = find_sources(
        arguments.data, out=arguments.out, dev=arguments.dev, test=arguments.test, documents=arguments.documents
    )
    table = look(sources)
    _tell(f"{in_comment(sources.title)}: {table.detected or 'no known format'}")
    if sources.beside:
        names = ", ".join(in_comment(one, 60) for one in sources.beside)
        _tell(f"not taken: {names}. Name the folder in place of the file, and all splits are.")
    columns = _columns(arguments, table, asking=asking)
    found = draft(
        sources,
        table,
        columns,
        name=arguments.name,
        instruction=arguments.instruction,
        metric=arguments.metric,
        model=arguments.model,
    )
    _tell(f"answers: {found.output.type} ({found.output.reason}); metric: {found.metric}")
    if asking:
        found = answered(found, sources, _instruction(arguments, found), _model(arguments, found))
    return found, sources.folder


def _columns(arguments: argparse.Namespace, table: Table, *, asking: bool) -> dict[str, str]:
    """The columns to write: none where the format is known and no flag says otherwise."""
    from advisor.flow.init import chosen, shown_columns

    if table.detected and arguments.input is None and arguments.output is None:
        return {}
    if asking and (arguments.input is None or arguments.output is None):
        _tell(f"The columns, with two values each:\n{shown_columns(table)}")
    columns = {}
    for key, what, guess in (("input", "is asked", table.asks), ("output", "holds the right answer", table.answers)):
        flag, said = f"--{key}", getattr(arguments, key)
        if said is None and asking:
            reason = f" ({guess.reason})" if guess else ""
            question = f"Which column {what}?{reason}"
            said = _ask(question, guess.value if guess else "", partial(chosen, table, guess=None, flag=flag))
        columns[key] = chosen(table, said, guess, flag)
        if said is None and guess:
            _tell(f"{key}: column {guess.value!r} ({guess.reason})")
    return columns


def _instruction(arguments: argparse.Namespace, found: Draft) -> str | None:
    if arguments.instruction is not None or not found.instruction_reason.startswith("A draft"):
        return None
    return _ask("What is the model to do? A text, or a file of it.", found.instruction, str)


def _model(arguments: argparse.Namespace, found: Draft) -> str | None:
    if arguments.model is not None:
        return None
    return _ask("Which model? A Hub name, a folder, a GGUF file, or the demo model.", found.model, str)


def _ask(question: str, default: str, checked: Callable[[str], str]) -> str:
    """An answer that passes, or the default for an empty line. Asks again with the reason until it does."""
    from advisor.flow.task_yaml import in_comment

    while True:
        print(f"{question}{f' [{in_comment(default, 300)}]' if default else ''} ", end="", file=sys.stderr, flush=True)
        said = input().strip()
        if not said and default:
            return default
        try:
            if said:
                return checked(said)
        except UsageError as error:
            _tell(error.what.partition(":\n")[0])


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _report(arguments: argparse.Namespace, written: Written) -> int:
    """What was written and what `advisor check` says of it."""
    if arguments.json:
        from evals.records import jsonable

        print(json.dumps(jsonable(written), indent=2, ensure_ascii=False))
        return 1 if written.problems else 0
    from advisor.flow.task_yaml import in_comment
    from evals.errors import ProblemsError

    path = in_comment(str(written.path), 300)
    print(f"{path} is written")
    for sentence in written.said:
        print(f"- {in_comment(sentence, 300)}")
    if not written.problems:
        print(f"Next: advisor check {path}")
        return 0
    do = f"mend these (`advisor check {path} --fix OUT` writes a cleaned copy), then run `advisor check`."
    print(ProblemsError(written.problems, do=do), file=sys.stderr)
    return 1
