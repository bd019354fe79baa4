"""A recommendation and a verdict as something to read: what was measured and decided elsewhere, put into words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content

from advisor.report.words import ACTIONS, SURE, VERDICTS
from advisor.tui.text import bullet, duration, line, number, points
from evals.errors import clean

if TYPE_CHECKING:
    from advisor.decision.compare import Comparison
    from advisor.decision.outcome import Reevaluation
    from advisor.decision.recommend import Recommendation
    from advisor.gate.policy import RuleVerdict, Verdict

COLOURS = {
    "pass": "$text-success",
    "fail": "$text-error",
    "inconclusive": "$text-warning",
    "not_applicable": "$text-primary",
}
SIGNS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not_applicable": "–"}


def recommendation_text(one: Recommendation) -> Content:
    headline = (clean(ACTIONS.get(one.action, one.action)), "bold $text-primary")
    parts = [
        Content.assemble(headline, f"  Candidate: {line(one.candidate)}.  ", (clean(SURE[one.sure]), "dim")),
        _list("Why", [Content(clean(reason.sentence)) for reason in one.reasons]),
        _list("Compared on the same items", [comparison_text(each) for each in one.comparisons]),
        _list("What this cannot tell", [Content(clean(each)) for each in one.cannot_tell]),
        _list("What would change it", [Content(clean(each)) for each in one.would_change]),
        _list("What would settle it", [Content(clean(each)) for each in one.settle]),
        _list("Under other circumstances", [Content(clean(each.sentence)) for each in one.sensitivity]),
        _spent(one.spent),
    ]
    return Content("").join(parts)


def _list(title: str, sentences: list[Content]) -> Content:
    if not sentences:
        return Content("")
    return Content.assemble((f"\n\n{title}", "bold"), *[bullet(each) for each in sentences])


def comparison_text(one: Comparison) -> Content:
    return Content.assemble(
        f"{line(one.a)} minus {line(one.b)}: ",
        (points(one.difference), "bold"),
        f" points (95% interval {points(one.low)} to {points(one.high)}, n = {one.n} on {line(one.split)}, "
        f"adjusted p {number(one.p_adjusted, '.2g')})",
    )


def _spent(spent: dict[str, float]) -> Content:
    """The figures are named by the flow; a run that was written by an older one may lack some."""
    told = []
    if "requests" in spent:
        told.append(f"{number(spent['requests'], ',.0f')} requests to the model")
    if "model_seconds" in spent:
        told.append(f"{duration(spent['model_seconds'])} of its time")
    if "probe_training_seconds" in spent:
        told.append(f"{duration(spent['probe_training_seconds'])} of training")
    return Content.assemble(("\n\nSpent to learn this: ", "bold"), ", ".join(told), ".") if told else Content("")


def verdict_text(verdict: Verdict, result: Reevaluation | None) -> Content:
    headline = (clean(VERDICTS.get(verdict.verdict, verdict.verdict)), f"bold {COLOURS.get(verdict.verdict, '')}")
    parts = [Content.assemble(headline, "\n", clean(verdict.sentence), "."), *map(_rule, verdict.rules)]
    if result:
        parts.append(_list("The claim on the locked test", [comparison_text(result.claim)]))
        if result.earlier_looks:
            looks = f"other runs looked at these rows {result.earlier_looks} time(s) before: the claim is weaker for it"
            parts.append(bullet((looks, "$text-warning")))
    return Content("").join(parts)


def _rule(one: RuleVerdict) -> Content:
    interval = f"({number(one.low, '.4f')} to {number(one.high, '.4f')})"
    return Content.assemble(
        "\n\n",
        (f"{SIGNS.get(one.verdict, ' ')} {one.verdict:<13}", COLOURS.get(one.verdict, "")),
        (line(one.rule), "bold"),
        f"  {number(one.value, '.4f')}  {interval}  limit {number(one.limit, 'g')}",
        (f"\n  {clean(one.sentence)}", "dim"),
    )
