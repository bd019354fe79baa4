"""The words of a new `task.yaml`: what was found and guessed, each with its reason, and what else there is, as comments.

What comes from the data is quoted by PyYAML, and stands in a comment only as one printable, shortened line.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import Any, get_args

import yaml

from evals.engines.models import DEMO_MODEL
from evals.task.guess import Output
from evals.task.spec import OutputType

SCHEMA_FILE = "task.schema.json"
WIDTH = 110
MAX_LABELS_WRITTEN = 40
OTHER_METRICS = {
    "text": "decides; others: containment, exact_match, rouge_l, chrf, bleu, similarity",
    "label": "decides; a list adds figures beside it: [accuracy, macro_f1]",
    "json": "decides: the share of fields that are right; a list adds others: [json_fields, exact_match]",
    "number": "decides; with a tolerance: {name: numeric_match, relative_tolerance: 0.01}",
}
MORE_DATA = {
    "dev": ("dev: dev.jsonl", "to choose by; split from train where it is left out"),
    "test": ("test: test.jsonl", "opened once, for the final claim; split from train where it is left out"),
    "documents": ("documents: documents/", "a folder to look answers up in: Markdown, text, HTML, PDF"),
}
OPTIONAL = (
    ("target: 0.85", "good enough: the cheapest way that surely reaches it is the answer"),
    ("traffic: {requests_per_month: 50000, months: 12}", "what a training must pay back on"),
    ("prices: {gpu_hour: 2.0, label: 0.2}", "in one currency; or input_per_million, output_per_million"),
    ("train: {num_train_epochs: 3, lora_r: 16}", "overrides of the recipe that is recommended"),
    ("gate: {min_gain: 0.03, max_forgetting: 0.05}", "what CI demands of the tuned model, in scores from 0 to 1"),
)


@dataclass(frozen=True)
class Draft:
    """What a new task file says. Reasons are of what was guessed; `column_hints` are keys, columns and reasons to offer."""

    source: str
    data: dict[str, Any]
    columns: dict[str, str]
    column_reasons: dict[str, str]
    column_hints: tuple[tuple[str, str, str], ...]
    output: Output
    name: str
    instruction: str
    instruction_reason: str
    metric: str
    model: str

    def body(self) -> dict[str, Any]:
        """The file as a mapping: what it must say when it is read."""
        output: dict[str, Any] = {"type": self.output.type}
        if self.output.labels and len(self.output.labels) <= MAX_LABELS_WRITTEN:
            output["labels"] = list(self.output.labels)
        return {
            "schema_version": 1,
            "name": self.name,
            **({"instruction": self.instruction} if self.instruction else {}),
            "data": self.data,
            **({"columns": self.columns} if self.columns else {}),
            "output": output,
            "metric": self.metric,
            "model": {"model_name_or_path": self.model},
            "seed": 0,
        }


def task_text(draft: Draft, *, schema: bool) -> str:
    """The file. `schema`: whether a schema for editors lies beside it. Raises ValueError where YAML cannot hold the data."""
    body = draft.body()
    lines = [f"# yaml-language-server: $schema={SCHEMA_FILE}"] if schema else []
    lines += [f"# From {in_comment(draft.source, 90)}. Next: `advisor check`, then `advisor run`.", "schema_version: 1"]
    lines += [_key("name", draft.name), "", *_instruction(draft), "", *_data(draft)]
    lines += ["", *_output(draft, body["output"]), "", *_model(draft), "seed: 0", ""]
    lines += ["# What else there is:", *_aligned([(f"# {code}", why) for code, why in OPTIONAL])]
    text = "\n".join(lines) + "\n"
    try:
        same = yaml.safe_load(text) == body
    except yaml.YAMLError:
        same = False
    if not same:
        raise ValueError("what YAML reads back is not what was written")
    return text


def in_comment(text: str, width: int = 100) -> str:
    """One printable line of at most `width` characters. What a terminal or YAML would obey becomes a question mark."""
    line = "".join(sign if sign.isprintable() else "?" for sign in " ".join(text[: 4 * width].split()))
    return line if len(line) <= width else f"{line[: width - 1]}…"


def scalar(text: str) -> str:
    """A text as one YAML scalar on one line, plain where that is safe and quoted where not."""
    return _dumped(text, None)


def _flow_scalar(text: str) -> str:
    """The same, for inside braces and brackets."""
    return _dumped([text], True)[1:-1]


def _dumped(value: Any, flow: bool | None) -> str:
    plain = yaml.safe_dump(value, allow_unicode=True, default_flow_style=flow, width=float("inf"))
    plain = plain.removesuffix("\n").removesuffix("\n...")
    # A line break of Unicode's is one of YAML's too, and would end the scalar elsewhere.
    if plain.isprintable() and yaml.safe_load(plain) == value:
        return plain
    return yaml.safe_dump(value, default_style='"', default_flow_style=flow, width=float("inf")).removesuffix("\n")


def _key(key: str, value: str, indent: int = 0) -> str:
    return f"{' ' * indent}{key}: {scalar(value)}"


def _instruction(draft: Draft) -> list[str]:
    """On one line, folded over some, or with its own lines: whichever reads back as the same text."""
    lines = [f"# {in_comment(draft.instruction_reason, 120)}"] if draft.instruction_reason else []
    text = draft.instruction
    if not text:
        return [*lines, "# instruction: instruction.md"]
    plain = _key("instruction", text)
    block = ["instruction: |-", *(f"  {line}".rstrip() for line in text.split("\n"))]
    folded = [
        "instruction: >-",
        *(f"  {line}" for line in wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)),
    ]
    kinds = [block] if "\n" in text else [folded] if len(plain) > WIDTH else []
    return [*lines, *next((one for one in kinds if _reads_back("\n".join(one), text)), [plain])]


def _reads_back(yaml_text: str, text: str) -> bool:
    try:
        return bool(yaml.safe_load(yaml_text) == {"instruction": text})
    except yaml.YAMLError:
        return False


def _data(draft: Draft) -> list[str]:
    lines = ["data:"]
    for key, value in draft.data.items():
        if isinstance(value, str):
            lines.append(_key(key, value, 2))
        else:
            pairs = ", ".join(f"{name}: {_flow_scalar(one)}" for name, one in value.items())
            lines.append(f"  {key}: {{{pairs}}}")
    lines += _aligned([(f"  # {code}", why) for key, (code, why) in MORE_DATA.items() if key not in draft.data])
    if not draft.columns:
        return lines
    said = [(_key(key, column, 2), draft.column_reasons.get(key, "")) for key, column in draft.columns.items()]
    offered = [(f"  # {in_comment(_key(key, column), 60)}", why) for key, column, why in draft.column_hints]
    return [*lines, "columns:", *_aligned([*said, *offered])]


def _output(draft: Draft, output: dict[str, Any]) -> list[str]:
    kind = draft.output
    others = ", ".join(one for one in get_args(OutputType) if one != kind.type)
    lines = ["output:", f"  type: {kind.type}  # {in_comment(kind.reason)} (or: {others})"]
    if "labels" in output:
        lines += _labels(output["labels"])
    elif kind.labels:
        lines.append(f"  # labels: [a, b]  # left out: the {len(kind.labels)} that stand in train")
    elif kind.type == "json":
        lines.append("  # schema: answer.schema.json  # a JSON Schema that answers keep to")
    return [*lines, f"{_key('metric', draft.metric)}  # {OTHER_METRICS[kind.type]}"]


def _labels(labels: list[str]) -> list[str]:
    """A list in brackets, over as many lines as it takes."""
    lines = ["  labels: ["]
    for at, one in enumerate(labels):
        word = _flow_scalar(one) + (", " if at < len(labels) - 1 else "]")
        if len(lines[-1]) + len(word) > WIDTH and at:
            lines[-1] = lines[-1].rstrip()
            lines.append(f"    {word}")
        else:
            lines[-1] += word
    return lines


def _model(draft: Draft) -> list[str]:
    demo = " The demo model is small: to try everything." if draft.model == DEMO_MODEL else ""
    return [
        f"# Who answers: a name on the Hub, a folder or a GGUF file.{demo}",
        "model:",
        _key("model_name_or_path", draft.model, 2),
        "  # engine: endpoint  # instead of weights here: an OpenAI-compatible server at base_url: http://localhost:8000/v1",
    ]


def _aligned(pairs: list[tuple[str, str]]) -> list[str]:
    """Lines with their comments below each other, but for those of very long lines."""
    width = max((len(code) for code, _ in pairs if len(code) <= 70), default=0)
    return [f"{code:<{width}}  # {in_comment(why)}" if why else code for code, why in pairs]
