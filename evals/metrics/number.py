"""Numbers: read from an answer that is a number, or tolerantly as the last number mentioned."""

from __future__ import annotations

import math
import re
import unicodedata

from evals.metrics.text import exact_match

RELATIVE_TOLERANCE = 1e-6
BODY = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
NUMBER = re.compile(rf"[-+]?{BODY}")
# One separator throughout, and groups of three: "1,234,567", "1 234", "1'234"; "3,14" is no English number.
GROUPED = re.compile(r"(?<![0-9])[0-9]{1,3}(?:([,_' ’])[0-9]{3})(?:\1[0-9]{3})*(?![0-9])")
# Digits that follow a letter (H2O, v1.5) are no answer. No spaces as separators: "page 12 345" is two.
MENTIONED = re.compile(
    r"(?<![^\W\d_])(?<![0-9])(?<![0-9]\.)(?:(?<![\w)])[-+])?"
    r"(?:[0-9]{1,3}(?:[,_'’][0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
)


def parse_number(text: str) -> float | None:
    """The finite number that the whole text is, thousands separators, currency and last full stop aside; else None."""
    plain = _plain(text).strip()
    if plain.endswith("."):
        plain = plain[:-1]
    plain = "".join(sign for sign in plain if unicodedata.category(sign) != "Sc").strip()
    # "- 5" and "-$5" leave the sign apart from its digits.
    plain = re.sub(r"^([-+])\s+", r"\1", plain)
    return _finite(GROUPED.sub(_ungroup, plain))


def last_number(text: str) -> float | None:
    """The last number mentioned in the text, else None. Digits that stand inside a word are passed over."""
    found = MENTIONED.findall(_plain(text))
    return _finite(re.sub("[,_'’]", "", found[-1])) if found else None


def same_number(one: float, other: float, relative: float = RELATIVE_TOLERANCE, absolute: float = 0.0) -> bool:
    """Equal within a share of the larger of the two, or within an absolute tolerance: the wider counts."""
    return math.isclose(one, other, rel_tol=relative, abs_tol=absolute)


def numeric_match(output: str, target: str, relative: float = RELATIVE_TOLERANCE, absolute: float = 0.0) -> float:
    """1 where the output is the target's number within the tolerances of `same_number`, else 0. Non-numbers compare as text."""
    wanted = parse_number(target)
    if wanted is None:
        return exact_match(output, target)
    given = parse_number(output)
    return float(given is not None and same_number(given, wanted, relative, absolute))


def _plain(text: str) -> str:
    """Full-width digits and no-break spaces as plain ones, the typographic minus as a hyphen."""
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-")


def _ungroup(match: re.Match[str]) -> str:
    return match.group(0).replace(match.group(1), "")


def _finite(digits: str) -> float | None:
    if not NUMBER.fullmatch(digits):
        return None
    number = float(digits)
    return number if math.isfinite(number) else None
