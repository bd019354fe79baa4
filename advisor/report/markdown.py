"""The report in Markdown, for someone who was not there. Data of the task stands in code blocks only, never as markup."""

from __future__ import annotations

from typing import Any

from advisor.report.forgetting import forgetting_section
from advisor.report.money import money_section
from advisor.report.quoted import block, plain
from advisor.report.repair import repair_section
from advisor.report.table import table
from advisor.report.words import ACTIONS, SURE, VERDICTS


def render(report: dict[str, Any]) -> str:
    measured = (_data, _dev, _retrieval, _training, repair_section, _test, forgetting_section)
    parts = [section(report) for section in (_head, *measured, _gate, money_section, _examples, _foot)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def _points(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _head(report: dict[str, Any]) -> str:
    recommendation, verdict = report["recommendation"], report["verdict"]
    lines = [f"# {report['task']['name']}: prompt, retrieve or fine-tune?", ""]
    if recommendation:
        lines += [
            f"**Recommendation: {ACTIONS[recommendation['action']]}** Candidate: `{recommendation['candidate']}`. "
            f"{SURE[bool(recommendation.get('sure'))]}",
            "",
        ]
    if verdict:
        lines += [f"**Gate: {VERDICTS[verdict['verdict']]}**", ""]
    if report["judge"]:
        lines += [f"**The judge: {report['judge']['sentence']}**", ""]
    if recommendation:
        lines += ["What this evidence cannot tell:", ""]
        lines += [f"- {one}" for one in recommendation["cannot_tell"]]
        lines += ["", "Why:", ""]
        lines += [f"- {one['sentence']} (`{one['rule']}`)" for one in recommendation["reasons"]]
        lines += ["", "What would change this:", ""]
        lines += [f"- {one}" for one in recommendation["would_change"]]
        for title, told in (
            ("What would settle it", recommendation.get("settle") or []),
            (
                "The same evidence under other circumstances",
                [one["sentence"] for one in recommendation.get("sensitivity") or []],
            ),
        ):
            lines += ["", f"{title}:", "", *(f"- {one}" for one in told)] if told else []
    return "\n".join(lines).strip()


def _scores(rows: list[dict[str, Any]], metric: str) -> str:
    others = list(rows[0]["other_metrics"])
    money = any(row["cost_per_1k"]["money"] is not None for row in rows)
    clean = any(row["score_without_tainted"] is not None for row in rows)
    head = [
        "candidate",
        "kind",
        metric,
        "95% interval",
        *(["untainted"] if clean else []),
        *others,
        "tokens in",
        "tokens out",
        "seconds per 1,000",
    ]
    body = []
    for row in sorted(rows, key=lambda one: -one["score"]):
        cost = row["cost_per_1k"]
        line = [f"`{row['candidate']}`", row["kind"], f"{row['score']:.3f}", _interval(row["low"], row["high"])]
        line += [f"{row['score_without_tainted']:.3f}"] if clean else []
        line += [f"{row['other_metrics'][name]:.3f}" for name in others]
        line += [f"{cost['prompt_tokens'] / 1000:.0f}", f"{cost['output_tokens'] / 1000:.0f}", f"{cost['seconds']:.0f}"]
        body.append([*line, "" if cost["money"] is None else f"{cost['money']:.4f}"] if money else line)
    return table([*head, "money per 1,000"] if money else head, body)


def _data(report: dict[str, Any]) -> str:
    """What stands in the way of trusting the data, before any score."""
    data = report.get("data")
    if not data:
        return ""
    told = [one for one in data["lines"] if one["level"] != "info"]
    rest = [one for one in data["lines"] if one["level"] == "info"]
    if not told and not rest:
        return "## The data\n\nNo leak between the splits and no doubtful row was found."
    # Messages quote the data: in a block of code, nothing of it is markup.
    lines = [f"{one['level']}: {plain(one['sentence'])}" for one in [*told, *rest]]
    return f"## The data\n\n{block(lines)}"


def _dev(report: dict[str, Any]) -> str:
    if not report["dev"]:
        return ""
    count = report["dev"][0]["n"]
    metric = report["task"]["metrics"][0]
    text = f"## Unchanged weights, on {count} dev items\n\n{_scores(report['dev'], metric)}"
    text += _race(report)
    recommendation = report["recommendation"]
    if recommendation and recommendation["comparisons"]:
        rows = [
            [
                f"`{one['a']}` minus `{one['b']}`",
                f"{100 * one['difference']:+.1f}",
                _points(one["low"], one["high"]),
                f"{one['p_adjusted']:.2g}",
            ]
            for one in recommendation["comparisons"]
        ]
        text += "\n\nPaired on the same items, in points of 100 (Holm over the rows):\n\n"
        text += table(["comparison", "difference", "95% interval", "p, adjusted"], rows)
    return text


def _race(report: dict[str, Any]) -> str:
    """Who left on how many items: their scores are of few items, and stand apart for it."""
    raced = report.get("race")
    if not raced:
        return ""
    rows = [[f"`{one['candidate']}`", one["kind"], str(one["items"]), f"{one['score']:.3f}"] for one in reversed(raced["left"])]
    return (
        f"\n\nOther ways to ask left a race on the same items before its end, the lowest first "
        f"({raced['spent']} answers spent on it):\n\n{table(['left', 'kind', 'after items', 'score on them'], rows)}"
    )


# The columns of retrieval's table; recall@5 has its interval.
FOUND = ("recall@1", "recall@5", "recall@10", "mrr@10", "ndcg@10", "context_precision@5")


def _retrieval(report: dict[str, Any]) -> str:
    """What was found, apart from what the model made of it."""
    some = [one for one in report.get("retrieval") or [] if one["n"]]
    if not some:
        return ""
    rows = [
        [
            f"`{one['way']}`",
            *(f"{one['figures'][name]['value']:.3f}" for name in FOUND),
            _interval(one["figures"]["recall@5"]["low"], one["figures"]["recall@5"]["high"]),
            f"{one['milliseconds']:.1f}",
        ]
        for one in sorted(some, key=lambda one: -one["figures"]["ndcg@10"]["value"])
    ]
    first = some[0]
    left = sum(first["unmeasured"].values())
    asked = f"{first['n']} dev questions, judged by the {first['kind']}" + (f" ({left} cannot be measured)" if left else "")
    head = ["way to search and to cut", *FOUND, "recall@5, 95% interval", "ms a question"]
    return f"## Retrieval, apart from answering\n\n{asked}. No model was asked here.\n\n{table(head, rows)}"


def _training(report: dict[str, Any]) -> str:
    one = report["training"]
    if not one:
        return ""
    dropped = f" {one['dropped']} rows were too long and left out." if one["dropped"] else ""
    chosen = f" Of these weights {one['chosen_on_dev']}." if one["chosen_on_dev"] else ""
    return (
        f"## Training\n\n{one['method']} on {one['rows']} rows: {one['steps']} steps, {one['train_tokens']:,} tokens in "
        f"{one['seconds']:.0f} s ({one['tokens_per_second']:.0f} tokens/s), peak memory {one['peak_memory_mib']:.0f} MiB."
        f"{dropped}{chosen} The recipe is in `training/recipe.json`, the weights in `training/{one['folder']}/`."
    )


def _test(report: dict[str, Any]) -> str:
    if not report["test"]:
        return ""
    claim = report["claim"]
    looks = report["earlier_looks"]
    rows = [
        [
            f"`{one['a']}` minus `{one['b']}`",
            f"{100 * one['difference']:+.1f}",
            _points(one["low"], one["high"]),
            f"{one['p_adjusted']:.2g}",
        ]
        for one in [claim, *report["other_comparisons"]]
    ]
    text = (
        f"## The locked test, {claim['n']} items\n\n"
        f"The claim: `{claim['a']}` against its best cheaper rival by dev, `{claim['b']}`: "
        f"**{100 * claim['difference']:+.1f} points, 95% interval {_points(claim['low'], claim['high'])}**.\n\n"
        f"{_scores(report['test'], report['task']['metrics'][0])}\n\n"
        "Paired, in points of 100 (the first row is the claim; Holm over the rows):\n\n"
        f"{table(['comparison', 'difference', '95% interval', 'p, adjusted'], rows)}"
    )
    clean = report["claim_without_tainted"]
    if report["tainted"]:
        text += f"\n\n**{report['tainted']} of these items stand nearly alike in train or dev.** "
        text += (
            f"Without them (n = {clean['n']}) the claim is {100 * clean['difference']:+.1f} points, "
            f"95% interval {_points(clean['low'], clean['high'])}."
            if clean
            else "Without them too few are left for a claim."
        )
    if looks:
        text += f"\n\n**These test rows were looked at {looks} time(s) before, by other runs or for other weights: "
        text += "the claim is weaker for it.**"
    return text


def _gate(report: dict[str, Any]) -> str:
    verdict = report["verdict"]
    if not verdict or not verdict["rules"]:
        return ""
    rows = [
        [
            f"`{one['rule']}`",
            f"{one['value']:.4f}",
            f"{one['low']:.4f} to {one['high']:.4f}",
            f"{one['limit']:g}",
            one["verdict"],
        ]
        for one in verdict["rules"]
    ]
    notes = "\n".join(f"- `{one['rule']}`: {one['sentence']}" for one in verdict["rules"])
    return f"## The gate\n\n{table(['rule', 'value', 'interval', 'limit', 'verdict'], rows)}\n\n{notes}"


def _examples(report: dict[str, Any]) -> str:
    if not report["examples"]:
        return ""
    blocks = []
    for one in report["examples"]:
        text = "\n".join(f"{name + ':':<26} {plain(str(value))}" for name, value in one.items())
        blocks.append(block([text]))
    return "## Where the two differ\n\n" + "\n\n".join(blocks)


def _foot(report: dict[str, Any]) -> str:
    task = report["task"]
    rows = ", ".join(f"{name} {count}" for name, count in task["rows"].items())
    return (
        f"---\n\nRun `{report['run']}`; model `{task['model']}`; rows: {rows}; seed {task['seed']}; "
        f"task hash `{task['hash'][:16]}`, test hash `{task['test_hash']}`. Intervals are paired and cluster-robust; "
        "every number here can be computed again from the records in this folder."
    )
