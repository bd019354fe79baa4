"""What was forgotten, in the report: the verdict first, then what explains it. What items and models say stands in blocks of code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from advisor.decision.forgetting import Forgetting, Turned
from advisor.report.quoted import block, plain
from advisor.report.table import table
from evals.general.drift import NEITHER, UNTOLD

SHOWN_ITEMS = 4
SHOWN_CHARACTERS = 300
VERDICTS = {
    "holds": "The loss is smaller than the margin of {margin:g} points.",
    "broken": "The loss is greater than the margin of {margin:g} points.",
    "undecided": "Whether the loss is within the margin of {margin:g} points is not settled.",
}


def forgetting_record(found: Forgetting) -> dict[str, Any]:
    """For `report.json`: everything but the items that turned, of which the first few; all are in `general/forgetting.json`."""
    body = asdict(found)
    body["tasks"] = [{**asdict(one), "answer": one.answer, "at_chance": one.at_chance} for one in found.benchmarks]
    del body["benchmarks"]
    body["forgetting"] = body.pop("pooled")
    for name in ("lost", "won"):
        some: Sequence[Turned] = getattr(found, name)
        body[name] = {"items": len(some), "first": [_shown(one) for one in _spread(some)[:SHOWN_ITEMS]]}
    return body


def _spread(turned: Sequence[Turned]) -> list[Turned]:
    """One of each benchmark in turn, that with the most of them first."""
    by_task: dict[str, list[Turned]] = {}
    for one in turned:
        by_task.setdefault(one.task, []).append(one)
    columns = sorted(by_task.values(), key=len, reverse=True)
    return [one for row in zip_longest(*columns) for one in row if one is not None]


def _shown(one: Turned) -> dict[str, Any]:
    texts = {name: getattr(one, name)[:SHOWN_CHARACTERS] for name in ("asked", "base", "tuned")}
    return {"id": one.id, "task": one.task, "by": one.by, **texts}


def forgetting_section(report: dict[str, Any]) -> str:
    """Empty where no weights were changed."""
    found = report["general"]
    if not found:
        return ""
    parts = (
        f"## Forgetting: suite `{_name(found['suite'])}`, base against tuned on the same items",
        _verdict(found),
        _benchmarks(found),
        _notes(found),
        _calibration(found),
        _moved(found),
        _drift(found),
        _turned(found),
    )
    return "\n\n".join(part for part in parts if part)


def _verdict(found: dict[str, Any]) -> str:
    pooled = found["forgetting"]
    if not pooled["n"]:
        return f"**Nothing can be said: no pooled item is left.** {_excluded(found)}".strip()
    text = f"**{VERDICTS[pooled['answer']].format(margin=100 * pooled['margin'])}** Pooled over {pooled['n']} items the score went from "
    text += f"{found['base']:.3f} to {found['tuned']:.3f}: {_signed(pooled['estimate'])} points, one-sided 95% bounds {_span(pooled)}."
    if pooled["answer"] == "undecided":
        more = pooled["more_items"]
        text += (
            f" About {more} more items would settle it."
            if more
            else " No number of items would: the estimate lies on the margin."
        )
        text += " That is not the same as no loss."
    return f"{text} {_excluded(found)}".strip()


def _excluded(found: dict[str, Any]) -> str:
    count = found["excluded"]
    return f"Left out: {count} of the items, which stand in the training rows and say nothing of forgetting." if count else ""


def _benchmarks(found: dict[str, Any]) -> str:
    tasks = found["tasks"]
    excluded, calibrated = any(one["excluded"] for one in tasks), any(one["calibration"] for one in tasks)
    head = ["benchmark", "items", *(["left out"] if excluded else []), "base", "tuned", "change", "one-sided 95% bounds"]
    head += ["within the margin", "lost", "won", *(["ECE base", "ECE tuned"] if calibrated else [])]
    rows = []
    for one in tasks:
        change = one["change"]
        row = [f"`{_name(one['task'])}`{'' if one['pooled'] else ' (not pooled)'}", str(one["n"])]
        row += [str(one["excluded"])] if excluded else []
        row += [f"{one['base']:.3f}", f"{one['tuned']:.3f}", _signed(change["estimate"]), _span(change)] if change else [""] * 4
        row += [_answer(one), str(one["lost"]), str(one["won"])]
        if calibrated:
            row += [f"{one['calibration'][name]:.3f}" if one["calibration"] else "" for name in ("base", "tuned")]
        rows.append(row)
    return table(head, rows)


def _answer(one: dict[str, Any]) -> str:
    """A benchmark's answer; where it is broken, or only before the adjustment, with Holm's p."""
    if one["change"] and one["change"]["answer"] == "broken":
        return f"{one['answer']} (p = {one['p_adjusted']:.2g}, Holm)"
    return str(one["answer"])


def _notes(found: dict[str, Any]) -> str:
    tasks = found["tasks"]
    lines = [
        f"Single benchmarks have fewer items than the pool, and can show less; one is called broken only where that stands after Holm's "
        f"adjustment over all {len(tasks)}. They gate nothing unless the policy names them (`gate.benchmarks`)."
    ]
    if low := [f"`{_name(one['task'])}`" for one in tasks if one["at_chance"]]:
        lines.append(f"On {', '.join(low)} the base itself scores hardly more than by guessing: no loss can show there.")
    return " ".join(lines)


def _calibration(found: dict[str, Any]) -> str:
    one = found["calibration"]
    if not one:
        return ""
    before, after = one["too_sure"]
    return (
        f"Calibration, over {one['n']} pooled items with options: expected calibration error {one['base']:.3f} before, {one['tuned']:.3f} "
        f"after (ten bins). The mean probability of the chosen option was {_signed(before)} points from the mean score and is now "
        f"{_signed(after)}: {_signed(one['difference'])} points, 95% interval {_span(one)}."
    )


def _moved(found: dict[str, Any]) -> str:
    if not found["divergences"]:
        return ""
    rows = [
        [
            one["name"],
            f"{one['texts']}",
            f"{one['tokens']:,}",
            f"{one['base']:.2f}",
            f"{one['tuned']:.2f}",
            f"{one['ratio']:.3f} ({one['ratio_low']:.3f} to {one['ratio_high']:.3f})",
            f"{one['kl']:.4f} ({one['kl_low']:.4f} to {one['kl_high']:.4f})",
        ]
        for one in found["divergences"]
    ]
    head = ["read", "texts", "tokens", "perplexity, base", "tuned", "tuned over base", "KL(base, tuned), nats a token"]
    return (
        f"How far the model has moved where nothing is asked (95% intervals, a text is a cluster of its tokens). Moving is not yet losing; "
        f"much of it foretells a loss:\n\n{table(head, rows)}"
    )


def _drift(found: dict[str, Any]) -> str:
    drift = found["drift"]
    if not drift:
        return ""
    rows = []
    for one in (drift["words"], drift["empty"], drift["refused"], *drift["languages"]):
        # Lengths are in words, all others in percent of the answers.
        unit = 1 if one is drift["words"] else 100
        low, high = unit * one["low"], unit * one["high"]
        rows.append(
            [
                NAMES.get(one["name"], f"{one['name']}, %"),
                f"{unit * one['base']:.1f}",
                f"{unit * one['tuned']:.1f}",
                f"{unit * one['difference']:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
            ]
        )
    switched = (
        f" Of {drift['told']} answers that are in English or German both times, {100 * drift['switched']:.1f}% are in the other one now "
        f"(95% interval {100 * drift['switched_low']:.1f} to {100 * drift['switched_high']:.1f})."
        if drift["told"]
        else ""
    )
    return (
        f"The {drift['n']} answers that are written, in kind (95% intervals, paired, not adjusted for looking at several):\n\n"
        f"{table(['answers', 'base', 'tuned', 'change', '95% interval'], rows)}\n\n"
        f"Refusals are told by how an answer begins, languages by their commonest words.{switched}"
    )


NAMES = {"words": "length, words", NEITHER: "neither language, %", UNTOLD: "language cannot be told, %"}


def _turned(found: dict[str, Any]) -> str:
    parts = []
    for name, told in (("lost", "Lost"), ("won", "Won")):
        turned = found[name]
        if not turned["items"]:
            continue
        blocks = [block(_lines(one)) for one in turned["first"]]
        rest = turned["items"] - len(blocks)
        more = f" {len(blocks)} of them; all are in `general/forgetting.json`." if rest else ""
        parts.append("\n\n".join([f"{told}: {turned['items']} items.{more}", *blocks]))
    return "\n\n".join(parts)


def _lines(one: dict[str, Any]) -> list[str]:
    told = {f"{one['task']}, {one['id']}": one["asked"], "base": one["base"], "tuned": one["tuned"]}
    return [f"{plain(name) + ':':<26} {plain(text)}" for name, text in told.items()]


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _span(one: dict[str, Any]) -> str:
    return f"{_signed(one['low'])} to {_signed(one['high'])}"


def _name(text: str) -> str:
    """For code in a line: a name of the user's or of a task file has no way out of it."""
    return plain(text).replace("`", "'")
