"""What is wrong with rows by themselves, as text: empty, cut off, too long for the model, damaged on the way.

Everything here is said and nothing is changed. Where a sign is a matter of style (half of all targets end without a full
stop), the check holds its tongue: a list that cries wolf is not read.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from evals.metrics.text import fold
from evals.task.checks.consistency import class_balance, repeated_inputs
from evals.task.checks.findings import Finding, Level, Place
from evals.task.checks.places import SHOWN_ROWS, Splits, every_row, place, shortened
from evals.task.example import Example, calls_as_text
from evals.task.reading.documents import Document
from evals.task.reading.formats import Row
from evals.task.spec import OutputType

CountTokens = Callable[[Sequence[str]], list[int]]

# What so large a share of the rows does is the task's style, and is said once.
STYLE_SHARE = 0.05
STYLE_ROWS = 3
# Nearly all others must end their sentences before one that does not is a sign; and there must be others.
ENDED_SHARE = 0.9
SENTENCES = 20
SENTENCE_WORDS = 8
# Texts of exactly the greatest length: so many, so much more than at each length below it, and no shorter than this.
PILE_ROWS = 5
PILE_RATIO = 5.0
PILE_LENGTH = 100
# An ellipsis ends many a short message; a long text that ends in one was mostly cut.
LONG_TEXT = 200

# Letters by category, or drawn as nothing: fillers of Hangul, the blank of Braille, an object that is not there.
BLANK = set("\u115f\u1160\u3164\uffa0\u2800\u034f\ufffc")
PLACEHOLDERS = frozenset(
    "n/a na n.a #n/a #ref! #value! null nan nil none undefined todo tbd tba fixme placeholder xxx asdf".split()  # noqa: SIM905
)
# A class may well be called "none" or "na"; nobody calls one "todo".
LABEL_PLACEHOLDERS = PLACEHOLDERS - {"none", "nil", "na", "xxx"}
CUT_MARK = re.compile(
    r"(?:\[\s*(?:truncated|cut off|snip|\.\.\.|…)\s*\]|[<(]truncated[>)]|\[\+\d+ chars\]|\.\.\. ?\(\d+ more \w+\))\s*\Z",
    re.IGNORECASE,
)
ELLIPSIS = re.compile(r"(?:\.\.\.|…)\s*\Z")
JSON_START = re.compile(r'\s*(?:\{\s*"|\[\s*["\[{])')
IN_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}"]', re.DOTALL)
FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
UNENDED = re.compile(r"[^\W_]\Z|[,\-–—(\[{/&]\Z")
# UTF-8 that was read as Windows-1252: of what can come out, only what nobody writes on purpose (« voilà » is French).
LATE = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
MOJIBAKE = re.compile(rf"Ã(?:(?![«»])[{LATE}]|[«»](?=\w))|Â[\xa0£©®°·¿¡´§±]|â€[{LATE}]|ðŸ[{LATE}]{{2}}|(?:[ÐÑ][{LATE}]){{2,}}")
ENTITY = re.compile(r"&(?:#\d{2,6}|#[xX][0-9a-fA-F]{2,5}|[A-Za-z]{2,8}\d{0,2});")
MARKUP = re.compile(r"</?[A-Za-z][^<>]{0,200}>")


def row_checks(
    splits: Splits,
    *,
    output_type: OutputType,
    labels: Sequence[str],
    count_tokens: CountTokens | None,
    context_length: int | None,
) -> list[Finding]:
    """All checks of rows by their text.

    `labels` are the task's, declared or inferred. `count_tokens` counts the tokens of texts for the chosen model, whose
    context of `context_length` tokens holds prompt and answer; where either is None, no row can be too long.
    """
    found = [*_empty(splits, output_type), *_truncated(splits, output_type)]
    if count_tokens is not None and context_length is not None:
        found += _overlong(splits, count_tokens, context_length)
    found += _damaged(splits)
    found += repeated_inputs(splits, output_type)
    if output_type == "label":
        found += class_balance(splits, labels)
    return found


def repeated_documents(documents: Sequence[Document]) -> list[Finding]:
    """Documents whose text stands in an earlier one too: each shows up in retrieval twice."""
    # By hash: all texts together may be more than memory holds.
    first: dict[bytes, str] = {}
    found = []
    for one in documents:
        earlier = first.setdefault(bytes.fromhex(one.sha256), one.id)
        if earlier != one.id:
            places = tuple(Place("documents", name, name, 0, shortened(one.text)) for name in (one.id, earlier))
            found.append(Finding("duplicate", "review", "this document has the same text as another one", places))
    return found


def _one(check: str, level: Level, message: str, pool: str, row: Row, value: float | None = None) -> Finding:
    return Finding(check, level, message, (place(pool, row),), value)


def _empty(splits: Splits, output_type: OutputType) -> list[Finding]:
    """Texts that nobody can see, and stand-ins such as "N/A" and "TODO" where an answer belongs."""
    found: list[Finding] = []
    stand_ins: dict[str, list[tuple[str, Row]]] = {}
    for pool, row in every_row(splits):
        for side, text in (("input", row.example.text), ("target", row.example.target)):
            if _invisible(text):
                names = ", ".join(sorted({f"U+{ord(sign):04X}" for sign in text})[:4])
                found.append(_one("empty", "warning", f"the {side} holds nothing that can be seen ({names})", pool, row))
            elif side == "input" and _only_punctuation(text):
                message = f"the input is nothing but punctuation ({shortened(text, 40)!r})"
                found.append(_one("empty", "review", message, pool, row))
        if output_type in ("text", "label") and (word := _stand_in(row.example.target, output_type)):
            stand_ins.setdefault(word, []).append((pool, row))
    total = sum(map(len, splits.values()))
    for word, rows in sorted(stand_ins.items()):
        found += _stand_in_findings(word, rows, total, output_type)
    return found


def _stand_in(target: str, output_type: OutputType) -> str:
    """The placeholder that the whole target is, or an empty string."""
    if len(target) > 40:
        return ""
    folded = fold(target)
    word = folded.strip("[]<>(){}\"'`.:-_* ")
    known = LABEL_PLACEHOLDERS if output_type == "label" else PLACEHOLDERS
    if word in known:
        return word
    return folded if output_type == "text" and _only_punctuation(target) else ""


def _stand_in_findings(word: str, rows: list[tuple[str, Row]], total: int, output_type: OutputType) -> list[Finding]:
    if output_type == "label" or len(rows) > max(STYLE_ROWS, STYLE_SHARE * total):
        what = "label" if output_type == "label" else "target"
        message = (
            f"the {what} {word!r} of {len(rows):,} of {total:,} rows looks like a placeholder: keep it only if it is an answer"
        )
        places = tuple(place(pool, row) for pool, row in rows[:SHOWN_ROWS])
        return [Finding("empty", "review", message, places, float(len(rows)))]
    message = f"the target {word!r} looks like a placeholder"
    return [_one("empty", "review", message, pool, row) for pool, row in rows]


def _invisible(text: str) -> bool:
    return all(sign.isspace() or sign in BLANK or unicodedata.category(sign) in ("Cc", "Cf") for sign in text)


def _only_punctuation(text: str) -> bool:
    """Marks only: no letter, digit, or symbol (an emoji and a + say something)."""
    return all(sign.isspace() or unicodedata.category(sign)[0] in "PC" for sign in text) and not _invisible(text)


def _truncated(splits: Splits, output_type: OutputType) -> list[Finding]:
    """Signs that a text was cut: what it says itself, what it leaves open, and where many end alike."""
    found: list[Finding] = []
    trailing: list[tuple[str, Row]] = []
    for pool, row in every_row(splits):
        source, target = row.example.text, row.example.target
        why = ""
        if mark := CUT_MARK.search(source[-60:]) or CUT_MARK.search(target[-60:]):
            why = f"the text says itself that it was cut: it ends in {mark.group().strip()!r}"
        elif len(FENCE.findall(target)) % 2:
            why = "the target opens a code fence (```) and does not close it"
        elif depth := _left_open(target):
            why = f"the target is JSON that ends with {depth} bracket{'s' if depth > 1 else ''} or quotes left open"
        elif len(source) >= LONG_TEXT and ELLIPSIS.search(source[-8:]):
            trailing.append((pool, row))
        if why:
            found.append(_one("truncated", "warning", why, pool, row))
    total = sum(map(len, splits.values()))
    if len(trailing) <= max(STYLE_ROWS, STYLE_SHARE * total):
        for pool, row in trailing:
            message = f"the input of {len(row.example.text):,} characters ends in an ellipsis: was it cut?"
            found.append(_one("truncated", "review", message, pool, row))
    if output_type == "text":
        found += _unended(splits)
    return found + _piled_up(splits, output_type)


def _left_open(text: str) -> int:
    """Brackets and quotes that a JSON text leaves open at its end; 0 for what is whole, or no JSON."""
    if not JSON_START.match(text):
        return 0
    try:
        json.loads(text)
    except RecursionError:
        return 0
    except ValueError:
        depth = 0
        for match in IN_JSON.finditer(text):
            sign = match.group()
            if sign == '"':
                # No closing quote was found behind this one.
                return depth + 1
            depth += (sign in "[{") - (sign in "]}")
        return max(0, depth)
    return 0


def _unended(splits: Splits) -> list[Finding]:
    """Targets that stop in mid-sentence where nearly all others end theirs."""
    sentences = [
        (pool, row, row.example.target.rstrip())
        for pool, row in every_row(splits)
        if len(row.example.target.split(None, SENTENCE_WORDS)) >= SENTENCE_WORDS
    ]
    open_ones = [(pool, row) for pool, row, text in sentences if UNENDED.search(text[-2:]) and "://" not in text[-80:]]
    ended = len(sentences) - len(open_ones)
    if len(sentences) < SENTENCES or ended < ENDED_SHARE * len(sentences):
        return []
    return [
        _one(
            "truncated",
            "review",
            f"the target stops in mid-sentence (…{shortened(row.example.target[-30:])!r}); "
            f"{ended:,} of {len(sentences):,} targets end with a mark",
            pool,
            row,
        )
        for pool, row in open_ones
    ]


def _piled_up(splits: Splits, output_type: OutputType) -> list[Finding]:
    """Many texts of exactly the greatest length: a limit on characters stood somewhere before this file."""
    found = []
    every = list(every_row(splits))
    sides: list[tuple[str, Callable[[Example], str]]] = [("input", lambda one: one.text)]
    if output_type == "text":
        sides.append(("target", lambda one: one.target))
    for side, text_of in sides:
        # Equal texts count once: a long question that stands there ten times was not cut ten times.
        texts = {text_of(row.example): (pool, row) for pool, row in every}
        top = max(map(len, texts), default=0)
        at_top = [text for text in texts if len(text) == top]
        below = sum(0.8 * top <= len(text) < top for text in texts) / max(1.0, 0.2 * top)
        unended = sum(bool(UNENDED.search(text.rstrip()[-2:])) for text in at_top)
        if top < PILE_LENGTH or len(at_top) < PILE_ROWS or len(at_top) < PILE_RATIO * below or 2 * unended < len(at_top):
            continue
        message = (
            f"{len(at_top):,} {side}s are exactly {top:,} characters long and none is longer, {unended:,} of them stop in "
            f"mid-sentence: they were probably cut at {top:,} characters"
        )
        places = tuple(place(*texts[text]) for text in at_top[:SHOWN_ROWS])
        ids = [texts[text][1].example.id for text in at_top]
        found.append(Finding("truncated", "warning", message, places, float(len(at_top)), details={"ids": ids}))
    return found


def _overlong(splits: Splits, count_tokens: CountTokens, context_length: int) -> list[Finding]:
    """Rows whose input and target do not fit the model's context together. The chat template's own tokens come on top."""
    rows, texts = [], []
    for pool, row in every_row(splits):
        text = _whole_text(row.example)
        # A token is a byte at least: what has fewer bytes than the context has tokens need not be counted.
        if len(text) * 4 > context_length and len(text.encode("utf-8", "replace")) > context_length:
            rows.append((pool, row))
            texts.append(text)
    found = []
    for (pool, row), tokens in zip(rows, count_tokens(texts) if texts else [], strict=True):
        if tokens > context_length:
            message = f"the input and target are {tokens:,} tokens, the model's context is {context_length:,}"
            found.append(_one("overlong", "warning", message, pool, row, float(tokens)))
    return found


def _whole_text(example: Example) -> str:
    """All that the model reads and writes of a row, the longer one of two answers."""
    turns = [
        f"{message.content}{calls_as_text(message.tool_calls) if message.tool_calls else ''}" for message in example.messages
    ]
    return "\n".join([*example.tools, *turns, max(example.target, example.rejected or "", key=len)])


def _damaged(splits: Splits) -> list[Finding]:
    """Text that was decoded wrongly, lost signs, or was left in the escapes of HTML."""
    found = []
    for pool, row in every_row(splits):
        for side, text in (("input", row.example.text), ("target", row.example.target)):
            if why := _damage(text):
                found.append(_one("encoding", "review", f"the {side} {why}", pool, row))
                break
    return found


def _damage(text: str) -> str:
    """What happened to the text, or an empty string."""
    if lost := text.count("\ufffd"):
        return f"holds {lost} sign{'s' if lost > 1 else ''} that could not be decoded (U+FFFD)"
    if not text.isascii() and (broken := [one.group() for one in MOJIBAKE.finditer(text) if _repaired(one.group())]):
        first = broken[0]
        return f"holds {len(broken)} broken sign{'s' if len(broken) > 1 else ''}, such as {first!r} for {_repaired(first)!r}"
    # In HTML and XML entities are in their place.
    if "&" in text and not MARKUP.search(text):
        entities = Counter(one for one in ENTITY.findall(text) if html.unescape(one) != one)
        if entities:
            first = next(iter(entities))
            many = "s" if entities.total() > 1 else ""
            return f"holds {entities.total()} HTML escape{many}, such as {first!r} for {html.unescape(first)!r}"
    return ""


def _repaired(text: str) -> str:
    """What a text was before its UTF-8 was read as Windows-1252, or an empty string."""
    try:
        return bytes(_byte(sign) for sign in text).decode("utf-8")
    except ValueError:
        return ""


def _byte(sign: str) -> int:
    return ord(sign) if ord(sign) < 256 else sign.encode("cp1252")[0]
