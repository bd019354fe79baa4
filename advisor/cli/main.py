"""`advisor`: parse, call the flow, print. Data goes to stdout, talk and progress to stderr. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from advisor.cli import adapters, continual, export, init
from evals.errors import AdvisorError, Interrupted, UsageError

DESCRIPTION = """Prompt, retrieve or fine-tune? Measures all three on your task, says what to do and how sure it is,
trains where that pays, and gates the result.

  advisor init data.jsonl     looks at data and writes a task.yaml
  advisor                     the terminal app
  advisor demo                the whole journey on the shipped example `triage`
  advisor run TASK            the whole journey on your task

TASK is a task.yaml, its folder, or a shipped example (triage, handbook, capitals).
RUN is a run's folder or id, or a TASK."""
EXITS = "exit codes: 0 pass, 100 the gate says no, 101 inconclusive, 1 error, 2 usage, 130 interrupted (run again to go on)"


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    # Given before the verb or behind it: what is left out behind it must not undo what stood before.
    common.add_argument(
        "--runs-dir", type=Path, default=argparse.SUPPRESS, help="where runs live (default: ./runs or ADVISOR_RUNS)"
    )
    common.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    planned = argparse.ArgumentParser(add_help=False)
    planned.add_argument("--dry-run", action="store_true", help="print the plan with its estimate, and do nothing")
    planned.add_argument(
        "--calibrate",
        action="store_true",
        help="with --dry-run: train six real steps first, so that the estimate rests on them",
    )

    top = argparse.ArgumentParser(
        prog="advisor", description=DESCRIPTION, epilog=EXITS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="store_true", help="print the version")
    top.add_argument("--runs-dir", type=Path, default=None, help="where runs live (default: ./runs or ADVISOR_RUNS)")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, text: str, argument: str | None, *more: argparse.ArgumentParser) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text, parents=[common, *more], epilog=EXITS)
        if argument:
            one.add_argument("name", metavar=argument)
        return one

    init.add_arguments(verb("init", "look at data and write a commented task.yaml for it", None))
    check = verb("check", "read the task and its data, and report every problem, leak and doubtful row", "TASK")
    check.add_argument(
        "--fix", type=Path, metavar="OUT", help="write a cleaned copy of the data to OUT, and say what was changed"
    )
    check.add_argument(
        "--no-embeddings", action="store_true", help="leave out what needs the rows embedded (label noise, likeness)"
    )
    verb("bench", "measure what unchanged weights can do, on dev", "TASK")
    verb("advise", "measure, probe training, and recommend", "TASK")
    train = verb("train", "train the recommended recipe on all training rows", "TASK", planned)
    train.add_argument("--resume", action="store_true", help="go on with training that was interrupted (as it does anyway)")
    train.add_argument(
        "--remedy",
        action="store_true",
        help="of a RUN (or TASK) whose weights forget too much at every scale: train the next remedy of its report, and search again",
    )
    verb("run", "the whole journey: measure, recommend, train where it pays, measure again, gate", "TASK", planned)
    verb("demo", "the whole journey on the shipped example `triage`", None, planned)
    continual.add_arguments(
        verb("evaluate", "open the locked test and measure forgetting for what a run recommends or has trained", "RUN")
    )
    verb("gate", "print a run's verdict; the exit code is for CI", "RUN")
    verb("report", "print a run's report", "RUN")
    export.add_arguments(verb("export", "copy a run's trained weights with their card, or merge them into the base", "RUN"))
    adapters.add_arguments(verb("adapters", "list trained weights with what they scored; `combine` makes one of several", None))
    doctor = verb("doctor", "show the machine, the versions and what is missing", None)
    doctor.add_argument(
        "--calibration", action="store_true", help="show how well past forecasts of training held, in the runs of --runs-dir"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    # Libraries draw their own bars and send telemetry unless told before they are imported; our events say it all.
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Where bitsandbytes is installed others import it, and it warns of compiled kernels that nothing here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    arguments = parser().parse_args(argv)
    arguments.runs_dir = arguments.runs_dir or Path(os.environ.get("ADVISOR_RUNS") or "runs")
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("\nInterrupted. What is finished is kept: run the same command again, and it goes on.", file=sys.stderr)
        return Interrupted.exit_code
    except AdvisorError as error:
        if arguments.debug:
            raise
        print(f"advisor: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if arguments.debug:
            raise
        print(
            f"advisor: unexpected {type(error).__name__}: {error}\nWhat to do: run it again with --debug and report it.",
            file=sys.stderr,
        )
        return 1


def _dispatch(arguments: argparse.Namespace) -> int:
    if arguments.version:
        from importlib.metadata import version

        print(f"advisor {version('finetune-advisor')}")
        return 0
    if arguments.verb is None:
        if not sys.stdout.isatty() or not sys.stdin.isatty():
            raise UsageError("the app needs an interactive terminal", do="name a verb: `advisor --help` lists them.")
        from advisor.tui.app import AdvisorApp

        return AdvisorApp(arguments.runs_dir).run() or 0
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "init": init.run,
        "check": _check,
        "bench": lambda one: _go(one, "baselines"),
        "advise": lambda one: _go(one, "advice"),
        "train": lambda one: _remedy(one) if one.remedy else _go(one, "training", train=True),
        "run": lambda one: _go(one, "verdict"),
        "demo": lambda one: _go(one, "verdict", name="triage"),
        "evaluate": lambda one: continual.run(one) if continual.asked(one) else _evaluate(one),
        "gate": _gate,
        "report": _report,
        "export": export.run,
        "adapters": adapters.run,
        "doctor": _doctor,
    }
    return verbs[arguments.verb](arguments)


def _print_json(body: Any) -> None:
    from evals.records import jsonable

    print(json.dumps(jsonable(body), indent=2, ensure_ascii=False))


def _check(arguments: argparse.Namespace) -> int:
    from advisor.cli.check import check

    return check(
        arguments.name, arguments.runs_dir, fix=arguments.fix, embed=not arguments.no_embeddings, as_json=arguments.json
    )


def _go(arguments: argparse.Namespace, until: str, *, name: str | None = None, train: bool | None = None) -> int:
    if getattr(arguments, "calibrate", False) and not arguments.dry_run:
        raise UsageError("--calibrate is for the estimate of a plan", do="add --dry-run.")
    from advisor.flow.intake import read_task

    task = read_task(name or arguments.name)
    if getattr(arguments, "dry_run", False):
        return _plan(task, arguments)
    from advisor.cli.display import Display
    from advisor.flow.whole import go

    with Display() as display:
        journey = go(task, arguments.runs_dir, display.on_event, until=until, train=train)
    if arguments.json:
        print((journey.folder / "report.json").read_text(encoding="utf-8"), end="")
    else:
        from advisor.cli.display import print_journey

        print_journey(journey)
    return journey.exit_code if until == "verdict" else 0


def _remedy(arguments: argparse.Namespace) -> int:
    """Trains what repair offers next for RUN; `evaluate` then opens the test for what the search has chosen."""
    if arguments.dry_run:
        raise UsageError("--remedy has no plan of its own", do="read the run's report: it has each remedy's estimate.")
    from advisor.cli.display import Display, print_repair
    from advisor.flow.run import find_run, task_of
    from advisor.flow.whole import go

    folder = find_run(arguments.name, arguments.runs_dir)
    with Display() as display:
        journey = go(task_of(folder), folder.parent, display.on_event, until="repair", train=True, remedied=True)
    if arguments.json:
        _print_json(journey.repair)
    elif journey.repair is not None:
        print_repair(journey.repair, journey.folder)
        if journey.repair.chosen:
            print(f"  next: advisor evaluate {journey.folder.name}, which opens the locked test for these weights")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    """Goes on with the run of RUN from where it is; a trained adapter is measured whatever the recommendation was."""
    from advisor.cli.display import Display, print_journey
    from advisor.flow.run import find_run, task_of
    from advisor.flow.training import wanted
    from advisor.flow.whole import go

    folder = find_run(arguments.name, arguments.runs_dir)
    task = task_of(folder)
    trained = (folder / "training" / "training.json").is_file()
    with Display() as display:
        # Weights that the advice bought as evidence are measured only where it recommends them.
        train = True if wanted(folder) else None if trained else False
        journey = go(task, folder.parent, display.on_event, train=train)
    if arguments.json:
        print((folder / "report.json").read_text(encoding="utf-8"), end="")
    else:
        print_journey(journey)
    return 0


def _gate(arguments: argparse.Namespace) -> int:
    from advisor.flow.run import find_run
    from advisor.flow.verdict import read_verdict

    folder = find_run(arguments.name, arguments.runs_dir)
    verdict = read_verdict(folder)
    if arguments.json:
        _print_json(verdict)
    else:
        for rule in verdict.rules:
            print(
                f"{rule.verdict:<13} {rule.rule:<16} {rule.value:.4f} ({rule.low:.4f} to {rule.high:.4f}), limit {rule.limit:g}"
            )
        print(f"{verdict.verdict}: {verdict.sentence} ({folder.name})")
    return verdict.exit_code


def _report(arguments: argparse.Namespace) -> int:
    from advisor.flow.run import find_run

    folder = find_run(arguments.name, arguments.runs_dir)
    path = folder / ("report.json" if arguments.json else "report.md")
    if not path.is_file():
        raise AdvisorError("this run has no report yet", where=str(folder), do="finish it with `advisor run` first.")
    print(path.read_text(encoding="utf-8"), end="")
    return 0


def _plan(task: Any, arguments: argparse.Namespace) -> int:
    from advisor.flow.plan import plan

    if arguments.calibrate:
        from advisor.cli.display import Display

        with Display() as display:
            found = plan(task, arguments.runs_dir, calibrate=True, on_event=display.on_event)
    else:
        found = plan(task, arguments.runs_dir)
    if arguments.json:
        _print_json(found.record())
        return 0
    from advisor.cli.plan import print_plan

    print_plan(found)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.calibration:
        from advisor.cli.calibration import show

        return show(arguments.runs_dir, as_json=arguments.json)
    from advisor.flow.doctor import examine

    findings = examine()
    if arguments.json:
        _print_json(findings)
    else:
        for one in findings:
            print(f"{'ok' if one.ok else '!!':<3} {one.name:<22} {one.value}" + (f"\n    {one.mend}" if one.mend else ""))
    return 0 if all(one.ok for one in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
