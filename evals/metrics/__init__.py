"""How good one answer is: a score in [0, 1] of an output against a target, strict or tolerant.

Here are the metrics that are functions of these two texts. Those that have options, look at more than two texts or run
something are beside them in this room, one file a family; `build.py` makes what a task file asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evals.errors import did_you_mean
from evals.metrics import overlap, text
from evals.metrics.label import accuracy, first_label
from evals.metrics.number import last_number, numeric_match, same_number
from evals.metrics.structured import (
    equal,
    field_overlap,
    find_object,
    fold_keys,
    json_exact,
    json_fields,
    parse_object,
)

Comparison = Callable[[str, str], float]


def exact(output: str, target: str) -> float:
    """1 where the answer is the target, sign for sign but for whitespace around it."""
    return float(output.strip() == target.strip())


def exact_match(output: str, target: str) -> float:
    """1 where the answer is the target: as JSON values where the target is a JSON object, else as normalised text."""
    return json_exact(output, target) if parse_object(target) is not None else text.exact_match(output, target)


METRICS: dict[str, Comparison] = {
    "exact": exact,
    "exact_match": exact_match,
    "containment": text.containment,
    "token_f1": text.token_f1,
    "accuracy": accuracy,
    "json_fields": json_fields,
    "numeric_match": numeric_match,
    "rouge_l": overlap.rouge_l,
    "bleu": overlap.bleu,
    "chrf": overlap.chrf,
}
# No functions of two texts; they have no tolerant reading. `options.NAMES` is the whole list.
OTHERS = frozenset({"macro_f1", "json_schema", "regex", "code", "style", "similarity", "consistency", "judge", "python"})

DEFAULTS = {"text": "token_f1", "label": "accuracy", "json": "json_fields", "number": "numeric_match"}


def default_metric(output_type: str) -> str:
    """The metric that decides for `text`, `label`, `json` or `number` where the task names none. Raises KeyError."""
    _require("output type", output_type, DEFAULTS)
    return DEFAULTS[output_type]


def score(metric: str, output: str, target: str) -> float:
    """The strict score of one output, in [0, 1]; 1 where output and target are the same text. Raises KeyError."""
    _require("metric", metric, METRICS)
    return METRICS[metric](output, target)


def tolerant_score(output_type: str, metric: str, output: str, target: str, labels: Sequence[str] = ()) -> float:
    """The score, in [0, 1], with the form forgiven. For diagnosis only: tolerant minus strict is the format effect.

    Text by containment of the normalised target, a label by the first of `labels` mentioned, JSON by the first object
    found anywhere with its keys compared case-insensitively, a number by the last number. Never under the strict score:
    forgiving the form cannot cost anything. Options are not known here (a tolerance of numbers), and the metrics of
    `OTHERS` have no tolerant reading: theirs is 0. So the caller takes the strict score where that is higher. Raises
    KeyError for an unknown metric or output type.
    """
    _require("output type", output_type, DEFAULTS)
    if metric in OTHERS:
        return 0.0
    strict = score(metric, output, target)
    match output_type:
        case "text":
            return max(strict, text.containment(output, target))
        case "label":
            label = first_label(output, labels)
            return strict if label is None else max(strict, accuracy(label, target))
        case "json":
            return max(strict, _tolerant_json(metric, output, target))
        case _:
            given, wanted = last_number(output), last_number(target)
            return max(strict, float(given is not None and wanted is not None and same_number(given, wanted)))


def _tolerant_json(metric: str, output: str, target: str) -> float:
    given, wanted = find_object(output), parse_object(target)
    if given is None or wanted is None:
        return 0.0
    given, wanted = fold_keys(given), fold_keys(wanted)
    return field_overlap(given, wanted) if metric == "json_fields" else float(equal(given, wanted))


def _require(kind: str, name: str, known: dict[str, Comparison] | dict[str, str]) -> None:
    if name not in known:
        raise KeyError(f"unknown {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
