"""`metric:` of a task file: a name, or a name with its options. The first metric of a task decides."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from evals.errors import did_you_mean
from evals.task.model import ModelSpec
from evals.task.strict import Strict

# Metrics that measure likeness: no program says by them that an answer is right.
LIKENESS = frozenset({"rouge_l", "chrf", "bleu", "token_f1", "similarity", "judge", "style"})


class Options(Strict):
    """What every metric may be given: `called` names it in records where the same metric stands there twice."""

    decides: ClassVar[bool] = True
    name: str
    called: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$", max_length=60)

    @property
    def label(self) -> str:
        """What records and reports call it."""
        return self.called or self.name


class Plain(Options):
    """Metrics without options. `exact` wants the same string; `exact_match` the same text once normalised, or the same JSON."""

    name: Literal[
        "exact",
        "exact_match",
        "containment",
        "token_f1",
        "accuracy",
        "json_fields",
        "rouge_l",
        "bleu",
        "chrf",
        "similarity",
    ]


class MacroF1(Options):
    """Mean of the labels' F1. A figure of a whole split, so it cannot decide."""

    decides: ClassVar[bool] = False
    name: Literal["macro_f1"]


class JsonSchema(Options):
    """1 where the answer is JSON that keeps to `output.schema`."""

    name: Literal["json_schema"]


class NumericMatch(Options):
    """1 where the answer is the target's number, within a relative or an absolute tolerance (the wider counts)."""

    name: Literal["numeric_match"]
    relative_tolerance: float = Field(default=1e-6, ge=0, lt=1)
    absolute_tolerance: float = Field(default=0.0, ge=0)


class Regex(Options):
    """1 where the whole answer (or with `search: true` a part of it) matches the pattern."""

    name: Literal["regex"]
    pattern: str = Field(min_length=1, max_length=2000)
    search: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class Code(Options):
    """1 where the answer's Python runs with the tests that stand in the target: in a subprocess, with limits.

    `timeout` is in seconds of wall time for one answer with its tests.
    """

    name: Literal["code"]
    timeout: float = Field(default=5.0, gt=0, le=120)
    memory_mib: int = Field(default=512, ge=64, le=16384)


class Style(Options):
    """Share of the stated rules that the answer keeps: length in words, phrases, reading level. Brand voice without a judge.

    Each key is one rule: `banned` is kept where none of its phrases occurs, `required` where all do. `max_grade` is a
    grade of US schools (Flesch-Kincaid, English).
    """

    name: Literal["style"]
    min_words: int | None = Field(default=None, ge=0)
    max_words: int | None = Field(default=None, ge=1)
    banned: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    max_grade: float | None = Field(default=None, gt=0)

    @field_validator("banned", "required")
    @classmethod
    def _no_blank(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(phrase.strip() for phrase in value):
            raise ValueError("a phrase cannot be blank")
        return value

    @model_validator(mode="after")
    def _some_rule(self) -> Style:
        if self.min_words is None and self.max_words is None and self.max_grade is None and not (self.banned or self.required):
            raise ValueError("style needs a rule: min_words, max_words, banned, required or max_grade")
        return self


class Consistency(Options):
    """How often the candidate gives one answer to the paraphrases of a question and to samples of the same question."""

    decides: ClassVar[bool] = False
    name: Literal["consistency"]
    samples: int = Field(default=3, ge=0, le=64)
    temperature: float = Field(default=0.7, gt=0, le=2)


class Judge(Options):
    """A model's opinion: `pointwise` by a rubric, or `pairwise` against the target in both orders (a flip is a tie).

    `labels` is a JSON Lines file of people's scores of answers, which calibrate the judge; without it no gate passes on its
    word. `model` may be any engine. With `reasoning_tokens` it may think in so many tokens and ends with its verdict; without,
    it says the verdict alone, held to its form.
    """

    name: Literal["judge"]
    model: ModelSpec
    rubric: str = Field(min_length=1)
    mode: Literal["pointwise", "pairwise"] = "pointwise"
    scale: int = Field(default=5, ge=2, le=10)
    labels: str | None = None
    reasoning_tokens: int = Field(default=0, ge=0, le=8192)


class PythonFunction(Options):
    """A function of the user's, `python:FILE.py:FUNCTION`: (output, target) -> a score in [0, 1].

    `timeout` is in seconds for one answer; loading the file counts with the first.
    """

    name: Literal["python"]
    file: str = Field(pattern=r"^[^:]+\.py$")
    function: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout: float = Field(default=60.0, gt=0, le=3600)

    @property
    def label(self) -> str:
        return self.called or self.function


MetricOptions = Annotated[
    Plain | MacroF1 | JsonSchema | NumericMatch | Regex | Code | Style | Consistency | Judge | PythonFunction,
    Field(discriminator="name"),
]
FAMILIES: tuple[type[Options], ...] = get_args(get_args(MetricOptions)[0])
NAMES: tuple[str, ...] = tuple(name for family in FAMILIES for name in get_args(family.model_fields["name"].annotation))


def metric_options(value: Any) -> Any:
    """What stands in the task file as a mapping that pydantic can read. Raises ValueError for an unknown metric."""
    if isinstance(value, Options):
        return value
    if isinstance(value, str) and value.startswith("python:"):
        parts = value.split(":")
        if len(parts) != 3:
            raise ValueError(f"{value!r}: a metric of your own is python:FILE.py:FUNCTION")
        return {"name": "python", "file": parts[1], "function": parts[2]}
    body = {"name": value} if isinstance(value, str) else value
    if not isinstance(body, dict) or not isinstance(body.get("name"), str):
        raise ValueError("a metric is a name, or a mapping with a `name:` and its options")
    name = body["name"]
    if name not in NAMES:
        raise ValueError(f"unknown metric {name!r}{did_you_mean(name, NAMES)}; known: {', '.join(NAMES)}")
    return body


def plain_options(name: str) -> Options:
    """A metric by its name, with the options that it has where nothing is said. Raises ValueError where it needs some."""
    family = next(one for one in FAMILIES if name in get_args(one.model_fields["name"].annotation))
    return family.model_validate({"name": name})
