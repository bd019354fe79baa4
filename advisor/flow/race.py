"""The race on dev: many ways to ask the model, of which only the best few are asked about every item."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from advisor.decision.raced import Left, Race
from advisor.flow.run import reuse
from advisor.flow.session import Session
from evals.candidate import Candidate
from evals.evaluate import evaluate
from evals.events import Event, Note, OnEvent, Ticker
from evals.records import content_hash, write_json
from evals.scores import Scores
from evals.statistics.race import rejects_schedule
from evals.task.load import Task

# What the race may spend, in evaluations of the whole split; and how many candidates come through it.
ROUNDS = 6
COME_THROUGH = 4
# By how much the items grow from round to round, at least.
STEP = 1.6
# What everyone asks for first stays, whatever it scores.
REFERENCE = "zero_shot"


def race(
    task: Task,
    arms: Sequence[Candidate],
    session: Session,
    path: Path,
    on_event: OnEvent,
    *,
    come_through: int = COME_THROUGH,
) -> Race:
    """Synchronized successive rejects over `arms`: all that are left answer the same items, and the lowest mean leaves.

    Written to `path`, and read from there where it was run on the same arms and rows. Beside those that come through, the
    last to leave of each other kind goes on, since the decision compares kinds, and so does plain zero-shot.
    """
    key = content_hash(
        [task.hash(), come_through, [[arm.name, arm.settings, arm.engine.fingerprint if arm.engine else ""] for arm in arms]]
    )
    kept = reuse(path, key)
    if kept:
        left = tuple(Left(**one) for one in kept["left"])
        return Race(tuple(kept["through"]), left, kept["items"], kept["spent"])
    found = _run(task, arms, session, path.parent / "race", on_event, come_through)
    write_json(path, {"input_hash": key, **asdict(found)})
    return found


def _run(task: Task, arms: Sequence[Candidate], session: Session, folder: Path, on_event: OnEvent, come_through: int) -> Race:
    n = len(task.dev)
    # A budget that hardly goes round would drop arms unseen.
    if len(arms) <= come_through or ROUNDS * n < 3 * len(arms):
        return Race(tuple(arm.name for arm in arms), items=n)
    order = list(task.dev)
    random.Random(task.spec.seed).shuffle(order)
    running = list(arms)
    left: list[Left] = []
    last: dict[str, Scores] = {}
    rounds = in_rounds(rejects_schedule(len(arms), ROUNDS * n, n)[: len(arms) - come_through])
    spent, before = 0, 0
    ticker = Ticker(on_event, "the race on dev", _answers(len(arms), rounds), "answers")
    for items, leaving in rounds:
        some = task.with_split("dev", order[:items])
        for arm in running:
            last[arm.name] = evaluate(some, arm, "dev", folder, _only_notes(on_event), session.metrics)
            spent += items - before
            ticker.advance(items - before)
        before = items
        for _ in range(leaving):
            # Of equals the one with the most tokens leaves, then the later one: seconds would let noise choose.
            out = min(reversed(running), key=lambda arm: (last[arm.name].mean, -_tokens(last[arm.name])))
            running.remove(out)
            left.append(Left(out.name, out.kind, items, last[out.name].mean))
    through = [arm.name for arm in running]
    kinds = {arm.kind for arm in running}
    for one in reversed(left):
        if one.candidate == REFERENCE or one.kind not in kinds:
            through.append(one.candidate)
            kinds.add(one.kind)  # type: ignore[arg-type]
    return Race(tuple(through), tuple(one for one in left if one.candidate not in through), n, spent)


def in_rounds(schedule: Sequence[int]) -> list[tuple[int, int]]:
    """The phases of a schedule as few (items, how many leave after them), since a model asked in batches is quicker.

    A phase waits for later ones while the items are under `STEP` times its own: nobody leaves on fewer than scheduled.
    """
    rounds: list[tuple[int, int]] = []
    first = 0
    for items in schedule:
        if rounds and items < STEP * first:
            rounds[-1] = (items, rounds[-1][1] + 1)
        else:
            rounds.append((items, 1))
            first = items
    return rounds


def _answers(arms: int, rounds: Sequence[tuple[int, int]]) -> int:
    total, before = 0, 0
    for items, leaving in rounds:
        total += arms * (items - before)
        arms, before = arms - leaving, items
    return total


def _tokens(scores: Scores) -> float:
    return scores.average("prompt_tokens") + scores.average("output_tokens")


def _only_notes(on_event: OnEvent) -> OnEvent:
    """The race has a progress of its own, and a mean on few items is no result."""

    def told(event: Event) -> None:
        if isinstance(event, Note):
            on_event(event)

    return told
