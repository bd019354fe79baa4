"""What repair tried, in Markdown: each arm's gain against what it forgot, drawn and in a table, what was chosen and what is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters
from typing import Any

from advisor.report.table import table

WIDTH, HEIGHT = 60, 13
KINDS = {"tuned": "the trained weights", "soup": "mean of several seeds"}


def repair_section(report: dict[str, Any]) -> str:
    """Empty where nothing was trained, or where the trained weights hold and nothing was tried."""
    found = report.get("repair")
    if not found or found["whole"]["answer"] == "holds":
        return ""
    parts = ["## Repair: less forgetting without training", _opening(found)]
    if found["arms"]:
        measured = [one for one in found["arms"] if one["gain"] and one["forgetting"]]
        parts += [scatter(measured), _table(found), _after(found)]
    parts += ["\n".join(f"- {one}" for one in found["notes"])] if found["notes"] else []
    if found["offers"]:
        parts.append(_offers(found))
    return "\n\n".join(part for part in parts if part)


def _opening(found: dict[str, Any]) -> str:
    whole = found["whole"]
    text = (
        f"The trained weights on `{found['suite']}` (n = {whole['n']}): {100 * whole['estimate']:+.1f} points, one-sided 95% bounds "
        f"{100 * whole['low']:+.1f} to {100 * whole['high']:+.1f}; no loss beyond {100 * whole['margin']:g} points: {whole['answer']}."
    )
    if not found["choice"]:
        return f"{text} No repair was tried: {found['sentence']}."
    choice = found["choice"]
    chosen = (
        f"**`{choice['chosen']}` is used in the place of the trained weights.**"
        if choice["chosen"]
        else "**No arm is chosen.**"
    )
    if choice["chosen"] and not found["weights"]:
        chosen = "**The trained weights stay.**"
    shares = [
        f"{100 * value:.0f}% of {what}"
        for value, what in ((found["won_back"], "the loss is won back"), (found["kept"], "the gain is kept"))
        if value is not None
    ]
    more = f" As measured where it was chosen, {' and '.join(shares)}." if shares else ""
    return (
        f"{text}\n\n{chosen} {choice['sentence']}{more} Arms were chosen on dev and on one half of the suite; the locked test and "
        f"{_confirmed(found)} are for the chosen weights alone."
    )


def _confirmed(found: dict[str, Any]) -> str:
    return f"the items of `{found['confirm']}`" if found["confirm"] else "the rest"


def _table(found: dict[str, Any]) -> str:
    behind = set(found["choice"]["dominated"])
    letters = iter(ascii_letters)
    rows = []
    for one in sorted(found["arms"], key=lambda arm: -arm["kl"]):
        gain, lost = one["gain"], one["forgetting"]
        measured = bool(gain and lost)
        mark = next(letters, "?") if measured else ""
        said = "" if not measured else "**chosen**" if one["name"] == found["choice"]["chosen"] else lost["answer"]
        said += ", dominated" if one["name"] in behind else ""
        rows.append(
            [
                f"`{one['name']}`",
                mark,
                f"RegMean, {one['general']:g}" if one.get("general") else f"{one['scale']:g}",
                f"{one['kl']:.3f}",
                _points(gain["difference"], gain["low"], gain["high"]) if measured else "",
                _points(lost["estimate"], lost["low"], lost["high"]) if measured else "",
                said,
            ]
        )
    return table(
        ["arm", "in the drawing", "scale", "KL", "gain on dev", "change on half of the suite", "within the margin"], rows
    )


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def scatter(arms: Sequence[dict[str, Any]]) -> str:
    """Gain on dev (upwards) against the change of the general score (to the right is better), a letter an arm by falling KL; `:` is minus
    the margin. Where two fall on one place the later letter is drawn."""
    if not arms:
        return ""
    by_kl = sorted(arms, key=lambda arm: -arm["kl"])
    margin = by_kl[0]["forgetting"]["margin"]
    across = [one["forgetting"]["estimate"] for one in by_kl]
    up = [one["gain"]["difference"] for one in by_kl]
    left, right = min(*across, -margin, 0.0), max(*across, 0.0, -margin)
    low, high = min(*up, 0.0), max(*up, 0.0)
    rows = [[" "] * (WIDTH + 1) for _ in range(HEIGHT + 1)]
    edge = _at(-margin, left, right, WIDTH)
    for row in rows:
        row[edge] = ":"
    for letter, x, y in zip(ascii_letters, across, up, strict=False):
        rows[HEIGHT - _at(y, low, high, HEIGHT)][_at(x, left, right, WIDTH)] = letter
    lines = [f"{_label(at, low, high):>7} |{''.join(row)}" for at, row in enumerate(rows)]
    foot = f"{'':>7} +{'-' * (WIDTH + 1)}"
    ends = f"{'':>9}{100 * left:<+10.1f}{'change of the general score, points':^{WIDTH - 19}}{100 * right:>+10.1f}"
    head = "gain on dev, points"
    return "```text\n" + "\n".join(one.rstrip() for one in [head, *lines, foot, ends]) + "\n```"


def _label(row: int, low: float, high: float) -> str:
    if row in (0, HEIGHT // 2, HEIGHT):
        return f"{100 * (high - (high - low) * row / HEIGHT):+.1f}"
    return ""


def _at(value: float, low: float, high: float, size: int) -> int:
    return round((value - low) / (high - low) * size) if high > low else 0


def _after(found: dict[str, Any]) -> str:
    left = sum(1 for one in found["arms"] if not one["gain"])
    solved = (
        " A RegMean keeps the change that training made where the task's own texts need it and takes it back where general ones (none of "
        "the suite) would notice it; its number is the weight of the general ones."
        if any(one.get("general") for one in found["arms"])
        else ""
    )
    return (
        f"An arm is the way from the base to what was trained, times its scale.{solved} KL(base || arm) on general prompts, in nats a "
        f"token, says which are worth measuring ({left} were not)."
    )


def _offers(found: dict[str, Any]) -> str:
    lines = []
    for one in found["offers"]:
        told = ", ".join(f"`{key}: {value:g}`" for key, value in one["overrides"].items())
        price = "" if one["money"] is None else f", {one['money']:.2g} in money"
        state = "trained" if one["done"] else f"about {one['seconds'] / 60:.1f} minutes of training{price}"
        lines.append(f"- {told}: {one['why']} ({state}).")
    todo = (
        "`advisor train --remedy` with this run's id runs the next one."
        if not all(one["done"] for one in found["offers"])
        else ""
    )
    return (
        "Trainings that may forget less, in this order:\n\n"
        + "\n".join(lines)
        + (f"\n\n{todo}" if todo else "\n\nAll are tried.")
    )
