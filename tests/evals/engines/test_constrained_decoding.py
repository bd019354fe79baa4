"""Whatever the model would rather say, the answer keeps its form; and every answer of that form can be given."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.engines.constrain import MAX_GRAMMARS, GrammarTokens, Matcher
from evals.engines.engine import Constraint
from evals.engines.models import DEMO_MODEL, resolve_model
from evals.errors import AdvisorError
from evals.events import ignore

TICKET = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["card", "card lost", 'say "hi"', None, 3]},
        "name": {"type": "string", "maxLength": 12},
        "amount": {"type": "integer", "minimum": 0, "maximum": 99999},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-f]{1,3}$"}, "maxItems": 3},
        "inner": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "additionalProperties": False},
    },
    "required": ["intent", "name", "amount", "tags"],
    "additionalProperties": False,
}
PATTERNS = [
    r"[A-Z]{2}-\d{4}",
    r"^(yes|no)( please)?$",
    r"[^ab]{0,6}",
    r"(?i)ok|fine",
    r"\d{1,6}(\.\d\d)? (EUR|USD)",
    r'"/\\[a-c]+/"',
    r"(a|ab)(c|bcd)(d*)e",
    r"",
]
CHOICES = ["card", "card lost", "car", 'say "hi"', "\\d+", "/x/i", "a | b", " lead", "trail ", "two\nlines", "tab\there"]


class Model:
    """A tokeniser, and a model of no opinion: random logits, seeded."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: list[int]) -> None:
        import torch

        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.stop_ids = stop_ids
        self.grammar = GrammarTokens(tokenizer, vocab_size, stop_ids)
        self.random = torch.Generator().manual_seed(0)

    def allowed(self, *matchers: Matcher | None) -> list[set[int]]:
        import torch

        logits = torch.zeros(len(matchers), self.vocab_size)
        self.grammar.mask(matchers, logits)
        return [{int(one) for one in (row == 0).nonzero()} for row in logits]

    def answer(self, constraint: Constraint, limit: int = 400) -> str:
        import torch

        matcher = self.grammar.matcher(constraint)
        tokens: list[int] = []
        while not matcher.finished:
            logits = torch.randn(1, self.vocab_size, generator=self.random)
            self.grammar.mask([matcher], logits)
            token = int(logits.argmax())
            matcher.accept(token)
            if token in self.stop_ids:
                assert matcher.finished
                break
            tokens.append(token)
            assert len(tokens) < limit
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def can_say(self, constraint: Constraint, text: str) -> bool:
        """Whether the mask leads to this very text, and lets it end there. Each character is written by itself."""
        matcher = self.grammar.matcher(constraint)
        for character in text:
            (token,) = self.tokenizer(character, add_special_tokens=False)["input_ids"]
            if token not in self.allowed(matcher)[0]:
                return False
            matcher.accept(token)
        return matcher.finished or set(self.stop_ids) <= self.allowed(matcher)[0]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Model:
    """One token a character, 103 of them; logits a little wider; two tokens that end an answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return Model(tokenizer, 110, [tokenizer.eos_token_id, tokenizer.pad_token_id])


@pytest.fixture
def demo(demo_cache: Path) -> Model:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(DEMO_MODEL, ignore))
    return Model(tokenizer, 49_152, [tokenizer.eos_token_id])


def schema(value: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def choice(options: list[str]) -> Constraint:
    return Constraint("choice", json.dumps(options))


def answers_keep_their_form(model: Model, times: int) -> None:
    for _ in range(times):
        answer = model.answer(schema(TICKET))
        jsonschema.validate(json.loads(answer), TICKET)
        assert "\n" not in answer
        for pattern in PATTERNS:
            answer = model.answer(Constraint("regex", pattern))
            assert re.fullmatch(pattern, answer), (pattern, answer)


def test_random_answers_keep_their_form(tiny: Model) -> None:
    answers_keep_their_form(tiny, 20)
    assert {tiny.answer(choice(CHOICES)) for _ in range(800)} == set(CHOICES)


@pytest.mark.demo_model
def test_random_answers_of_the_demo_models_tokens_keep_their_form(demo: Model) -> None:
    answers_keep_their_form(demo, 5)
    options = [*CHOICES, "日本", "日本語", "naïve", "👍🏽", "👍", "\u2028", "\x7f"]
    assert {demo.answer(choice(options)) for _ in range(300)} == set(options)


@settings(deadline=None, max_examples=60)
# The tiny tokeniser's "?" is its unknown token, which is no text, and it has no "é".
@given(options=st.lists(st.text("ab \"'\\/|{}[]()\n\t#%.*+^$<>0é", max_size=6), min_size=1, max_size=6))
def test_any_choice_can_be_given_and_nothing_else(tiny: Model, options: list[str]) -> None:
    writable = [one for one in options if "é" not in one]
    constraint = choice(options)
    for option in writable:
        assert tiny.can_say(constraint, option)
        for other in (option + "a", option[:-1], "z" + option):
            assert tiny.can_say(constraint, other) == (other in writable)
    if len(writable) == len(options):
        assert tiny.answer(constraint) in options


def test_json_has_one_space_or_none_after_commas_and_colons_and_no_other(tiny: Model) -> None:
    pair = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
    constraint = schema({**pair, "additionalProperties": False})
    for said in ('{"a": 1, "b": 2}', '{"a":1,"b":2}', '{"a": 1,"b":2}'):
        assert tiny.can_say(constraint, said)
    for said in (
        '{"a":  1, "b": 2}',
        '{"a": 1,  "b": 2}',
        '{ "a": 1, "b": 2}',
        '{"a": 1, "b": 2 }',
        '{"a": 1,\n"b": 2}',
        ' {"a',
    ):
        assert not tiny.can_say(constraint, said)
    assert not tiny.can_say(constraint, '{"a": 1}')


@pytest.mark.parametrize("hint", [{"whitespace_flexible": True}, {"lenient": True}])
def test_a_schema_cannot_loosen_its_own_enforcement(tiny: Model, hint: dict[str, Any]) -> None:
    loose = {"type": "object", "x-guidance": hint, "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert not tiny.can_say(schema(loose), '{"a":  1}')
    with pytest.raises(AdvisorError, match="not"):
        tiny.grammar.matcher(schema({**loose, "not": {}}))


def test_a_regex_matches_the_whole_answer_with_or_without_anchors(tiny: Model) -> None:
    for pattern in ("ab?", "^ab?$"):
        assert tiny.can_say(Constraint("regex", pattern), "a")
        assert tiny.can_say(Constraint("regex", pattern), "ab")
        assert not tiny.can_say(Constraint("regex", pattern), "abb")
        assert not tiny.can_say(Constraint("regex", pattern), "")


def test_an_answer_may_end_by_any_stop_token_and_only_where_it_is_whole(tiny: Model) -> None:
    stops = set(tiny.stop_ids)
    assert len(stops) == 2
    (c, a, r, d, space) = tiny.tokenizer("card ", add_special_tokens=False)["input_ids"]
    for stop in stops:
        matcher = tiny.grammar.matcher(choice(["card", "card lost"]))
        for token in (c, a, r, d):
            assert tiny.allowed(matcher)[0] == {token}
            matcher.accept(token)
        assert tiny.allowed(matcher)[0] == stops | {space}
        assert not matcher.finished
        matcher.accept(stop)
        assert matcher.finished
        assert tiny.allowed(matcher)[0] == stops
        # A loop that goes on for the sake of its other rows.
        matcher.accept(stop)
    whole = tiny.grammar.matcher(choice(["c"]))
    whole.accept(c)
    assert whole.finished
    assert tiny.allowed(whole)[0] == stops


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_forbidden_logits_of_rows_with_a_form_are_changed(tiny: Model, dtype: str) -> None:
    import torch

    before = torch.randn(4, tiny.vocab_size).to(getattr(torch, dtype))
    logits = before.clone()
    started = tiny.grammar.matcher(choice(["ab", "xy"]))
    a, b, x = (tiny.tokenizer(one)["input_ids"][0] for one in "abx")
    started.accept(a)
    tiny.grammar.mask([None, tiny.grammar.matcher(choice(["ab", "xy"])), None, started], logits)
    for row, left in enumerate([None, {a, x}, None, {b}]):
        for token in range(tiny.vocab_size):
            kept = left is None or token in left
            assert logits[row, token] == (before[row, token] if kept else -torch.inf)


def test_tokens_beyond_the_tokenisers_are_never_allowed(tiny: Model) -> None:
    any_text = tiny.grammar.matcher(Constraint("regex", r"(?s).*"))
    (left,) = tiny.allowed(any_text)
    assert max(left) < len(tiny.tokenizer) < tiny.vocab_size
    # Marks that are no text and end nothing are forbidden too.
    marks = set(tiny.tokenizer.all_special_ids) - set(tiny.stop_ids)
    assert left == set(range(len(tiny.tokenizer))) - marks


def test_a_form_is_compiled_once_and_its_answers_are_apart(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    model = Model(AutoTokenizer.from_pretrained(tiny_model), 103, [2])
    compiled: list[Constraint] = []
    compile_one = GrammarTokens._compile
    monkeypatch.setattr(GrammarTokens, "_compile", lambda self, one: compiled.append(one) or compile_one(self, one))
    first, second = (model.grammar.matcher(choice(["ab", "b"])) for _ in range(2))
    assert len(compiled) == 1
    first.accept(model.tokenizer("a")["input_ids"][0])
    assert model.allowed(second)[0] == {model.tokenizer(one)["input_ids"][0] for one in "ab"}
    for number in range(2 * MAX_GRAMMARS):
        model.grammar.matcher(choice([str(number)]))
    assert len(model.grammar._grammars) == MAX_GRAMMARS


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint("json_schema", "{"), "JSON schema"),
        (Constraint("json_schema", "[]"), "a JSON schema is an object"),
        (schema({"type": "objct"}), "objct"),
        (schema({"type": "string", "not": {"const": "a"}}), "not"),
        (schema({"$ref": "https://example.com/x.json"}), "JSON schema"),
        (Constraint("json_schema", "[" * 100_000), "JSON schema"),
        (Constraint("regex", "a("), "unclosed group"),
        (Constraint("regex", "a(?=b)"), "look-around"),
        (Constraint("regex", r"(a)\1"), "regular expression"),
        (Constraint("choice", "[]"), "at least one"),
        (Constraint("choice", '["a", 1]'), "list of"),
        (Constraint("choice", '{"a": 1}'), "list of"),
        (Constraint("choice", "a, b"), "list of choices"),
        (choice(["\ud800"]), "half a character"),
    ],
)
def test_a_form_that_cannot_be_enforced_is_refused_with_its_reason(tiny: Model, constraint: Constraint, said: str) -> None:
    with pytest.raises(AdvisorError) as raised:
        tiny.grammar.matcher(constraint)
    assert said in raised.value.what
    assert raised.value.do
    assert "\n" not in raised.value.what
    assert len(raised.value.where) <= 80


def test_a_token_that_leaves_the_form_is_an_error_and_not_a_wrong_answer(tiny: Model) -> None:
    matcher = tiny.grammar.matcher(choice(["ab"]))
    with pytest.raises(AdvisorError, match="list of choices"):
        matcher.accept(tiny.tokenizer("z")["input_ids"][0])
    assert not matcher.finished
    with pytest.raises(AdvisorError, match="list of choices"):
        tiny.allowed(matcher)


def test_a_form_that_the_tokeniser_cannot_write_is_an_error(tiny: Model) -> None:
    with pytest.raises(AdvisorError, match="kept to its"):
        tiny.answer(choice(["日本"]))


def unreadable(tokenizer: Any) -> Iterator[tuple[Any, int, list[int]]]:
    yield object(), 110, [2]
    yield tokenizer, 50, [2]
    yield tokenizer, 110, []
    yield tokenizer, 110, [500]


def test_a_tokeniser_that_cannot_be_read_is_refused(tiny: Model) -> None:
    for given_tokenizer, width, stops in unreadable(tiny.tokenizer):
        with pytest.raises(AdvisorError, match="cannot be constrained"):
            GrammarTokens(given_tokenizer, width, stops)


def test_logits_of_another_shape_are_refused(tiny: Model) -> None:
    import torch

    matcher = tiny.grammar.matcher(choice(["ab"]))
    for shape in ((1, tiny.vocab_size + 1), (2, tiny.vocab_size), (tiny.vocab_size,)):
        with pytest.raises(ValueError, match="logits of shape"):
            tiny.grammar.mask([matcher], torch.zeros(shape))


def test_no_compiled_helper_is_needed(tiny: Model) -> None:
    tiny.answer(choice(["ab"]))
    assert "llguidance.torch" not in sys.modules
